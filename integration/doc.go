// Package integration tests murder as its users meet it: whole programs on
// loopback, with the engines, registries and BitTorrent clients that Debian
// ships. Nothing imports it.
//
// The plain files are the harness, one noun each: a file starts one kind of
// real program (registry.go, containerd.go, docker.go, ...) or makes what the
// programs move about (image.go, tree.go). The _test files each tell one
// promise to the user. All programs run without systemd, as children of the
// test, with private folders and sockets below a temporary root.
//
// Two rules keep a failed run from littering the machine. Each program dies
// with the test binary (Pdeathsig) and at the end of its test (its process
// group is killed). And programs that mount do so in a mount namespace of
// their own, so their mounts vanish with their last process; the harness
// enters that namespace with nsenter where it has to look at them.
//
// What the programs print goes to the log of a test that fails, or of every
// test with INTEGRATION_LOGS=1. A test that needs a program, or root, which the machine lacks is skipped
// with the missing thing's name; `make test` counts those.
package integration

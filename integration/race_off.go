//go:build !race

package integration

// raceDetector tells whether the tests, and so the murder they build, run
// under the race detector.
const raceDetector = false

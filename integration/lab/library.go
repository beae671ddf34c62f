package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"

	"github.com/murderp2p/murder/integration/netlab"
)

// libraryFleet is the swarm on the library's own client: lab/library as
// seeder and as host. Nobody pulls from it; a host is done when all pieces are
// on its disk, verified, which is a little less than what murder's hosts do.
type libraryFleet struct {
	*stage
	seed  *libraryPeer
	peers []*libraryPeer
}

// libraryPeer is one running lab/library.
type libraryPeer struct {
	*process
	commands *os.File
	output   *os.File
	ready    chan libraryEvent
	done     chan libraryEvent
	stats    chan libraryEvent
}

// libraryEvent is a line that lab/library prints.
type libraryEvent struct {
	Event          string
	Seconds        float64
	Sent, Received int64
}

// libraryPieceLength is what murder takes for blobs of up to 128 MiB, in bytes,
// and what served the library best: of 16 hosts with 64 MiB at 25 Mbit/s, the
// last was done at 1.37 times the limit with this length, at 1.57 with 128
// KiB, at 1.68 to 1.82 with 256 KiB and at 2.5 with 1 MiB.
const libraryPieceLength = 64 << 10

func openLibrary(ctx context.Context, s *stage) (*libraryFleet, error) {
	f := &libraryFleet{stage: s}
	if err := s.lab.buildLibrary(ctx); err != nil {
		return f, err
	}
	if err := f.writeTorrent(); err != nil {
		return f, err
	}
	var err error
	if f.seed, err = f.startPeer(ctx, s.seeder, roleSeeder, "seeder"); err != nil {
		return f, err
	}
	if err := f.seed.tell("go"); err != nil { // it has everything; so it takes connections
		return f, err
	}
	for i, m := range s.hosts {
		p, err := f.startPeer(ctx, m, roleHosts, fmt.Sprintf("host%02d", i))
		if err != nil {
			return f, err
		}
		f.peers = append(f.peers, p)
	}
	return f, nil
}

// buildLibrary builds lab/library, once.
func (l *lab) buildLibrary(ctx context.Context) error {
	if l.library != "" {
		return nil
	}
	binary := filepath.Join(l.dir, "library")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/murderp2p/murder/integration/lab/library").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build lab/library: %w\n%s", err, out)
	}
	l.library = binary
	return nil
}

func (f *libraryFleet) torrent() string { return filepath.Join(f.dir, "blob.torrent") }

// writeTorrent writes the plan's one blob into the seeder's folder, and its
// torrent file.
func (f *libraryFleet) writeTorrent() error {
	if len(f.image.layers) != 1 {
		return errors.New("the library's swarm takes one blob")
	}
	blob := f.image.layers[0]
	file := filepath.Join(f.dir, "seeder", "blob")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	info := metainfo.Info{Name: filepath.Base(file), Length: blob.size, PieceLength: libraryPieceLength}
	info.Pieces, err = metainfo.GeneratePieces(io.TeeReader(blob.reader(), out), info.PieceLength, nil)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	var m metainfo.MetaInfo
	if m.InfoBytes, err = bencode.Marshal(&info); err != nil {
		return err
	}
	bytes, err := bencode.Marshal(&m)
	if err != nil {
		return err
	}
	return os.WriteFile(f.torrent(), bytes, 0o600)
}

// startPeer starts lab/library on m and waits until it listens.
func (f *libraryFleet) startPeer(ctx context.Context, m *netlab.Machine, role, name string) (*libraryPeer, error) {
	stdin, commands, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	output, stdout, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, commands.Close())
	}
	defer stdout.Close()
	p := &libraryPeer{commands: commands, output: output,
		ready: make(chan libraryEvent, 1), done: make(chan libraryEvent, 1), stats: make(chan libraryEvent, 1)}
	p.process, err = f.start(m, role, name, pipes{in: stdin, out: stdout}, f.lab.library,
		"-torrent", f.torrent(), "-dir", filepath.Join(f.dir, name), "-listen", peerAddr(m), "-peers", f.others(m))
	if err != nil {
		p.close()
		return nil, err
	}
	go p.listen() // ends with the process
	_, err = p.await(ctx, p.ready)
	return p, err
}

func peerAddr(m *netlab.Machine) string { return netip.AddrPortFrom(m.Addr, mirrorPeerPort).String() }

// others are the addresses of all that m may connect to.
func (f *libraryFleet) others(m *netlab.Machine) string {
	var addrs []string
	for _, other := range append([]*netlab.Machine{f.seeder}, f.hosts...) {
		if other != m {
			addrs = append(addrs, peerAddr(other))
		}
	}
	return strings.Join(addrs, ",")
}

// listen sorts what the program says; each kind is said once for each asking.
func (p *libraryPeer) listen() {
	to := map[string]chan libraryEvent{"ready": p.ready, "done": p.done, "stats": p.stats}
	for in := json.NewDecoder(p.output); ; {
		var e libraryEvent
		if in.Decode(&e) != nil || to[e.Event] == nil {
			return
		}
		to[e.Event] <- e
	}
}

func (p *libraryPeer) tell(command string) error {
	_, err := fmt.Fprintln(p.commands, command)
	return err
}

func (p *libraryPeer) await(ctx context.Context, from chan libraryEvent) (libraryEvent, error) {
	select {
	case e := <-from:
		return e, nil
	case <-p.exited:
		return libraryEvent{}, fmt.Errorf("%s: %w: %s", p.name, errEnded, p.tail())
	case <-ctx.Done():
		return libraryEvent{}, ctx.Err()
	}
}

func (p *libraryPeer) close() {
	p.commands.Close()
	p.output.Close()
}

func (f *libraryFleet) pull(ctx context.Context, i int) (pulled, error) {
	if err := f.peers[i].tell("go"); err != nil {
		return pulled{}, err
	}
	e, err := f.peers[i].await(ctx, f.peers[i].done)
	return pulled{End: e.Seconds}, err
}

func (f *libraryFleet) kill(i int) { f.peers[i].kill() }

func (f *libraryFleet) close() {
	for _, p := range append([]*libraryPeer{f.seed}, f.peers...) {
		if p != nil {
			p.close()
		}
	}
}

func (f *libraryFleet) payload(ctx context.Context) (payload, error) {
	var sum payload
	e, err := f.seed.ask(ctx)
	if err != nil {
		return sum, err
	}
	sum.Seeder = e.Sent
	for i, p := range f.peers {
		e, err := p.ask(ctx)
		if err != nil && f.plan.Hosts[i].Kill > 0 {
			e.Sent = -1
		} else if err != nil {
			return sum, err
		}
		sum.Received += e.Received
		sum.Sent = append(sum.Sent, e.Sent)
	}
	return sum, nil
}

func (p *libraryPeer) ask(ctx context.Context) (libraryEvent, error) {
	if err := p.tell("stats"); err != nil {
		return libraryEvent{}, err
	}
	return p.await(ctx, p.stats)
}

package layers

import (
	"context"
	"errors"
	"sync"
	"time"
)

// hangsAfter is how long one write, or one name given to a file, takes before the disk counts
// as hanging: much longer than a busy one needs, and as long as a client may be kept waiting.
const hangsAfter = 10 * time.Second

// ErrHangs is a failure (see DiskFailed) of a disk that neither takes bytes nor refuses them, as when its
// file system is frozen for a snapshot, or its server is away.
var ErrHangs = errors.New("disk hangs")

// patience watches over what a Store asks of its disk. A call that hangs can not be ended;
// what can be is the wait of those who do not need the disk.
type patience struct {
	after time.Duration

	mu    sync.Mutex // guards all below
	next  int
	under map[int]int // how often each call that is under way has been seen to be
	hangs bool
	times int           // how often it has hung
	ended chan struct{} // closed when hangs becomes true
}

func newPatience(after time.Duration) *patience {
	return &patience{after: after, under: make(map[int]int), ended: make(chan struct{})}
}

// call notes that the disk is asked for something, until over is called.
func (p *patience) call() (over func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.next
	p.next++
	p.under[n] = 0
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.under, n)
	}
}

// names is Store.names. Nothing but the disk can have it held for long, so that counts as a call.
type names struct {
	sync.Mutex
	patience *patience
	over     func()
}

func (n *names) Lock() {
	n.Mutex.Lock()
	n.over = n.patience.call()
}

func (n *names) Unlock() {
	n.over()
	n.Mutex.Unlock()
}

// looks is how often in a row a call is seen under way before it counts as hanging, in a tenth
// of the time each: time in which this process did not get to run is not the disk's.
const looks = 10

// look finds out whether the disk hangs now, and whether that is new.
func (p *patience) look() (hangs, new bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.hangs
	p.hangs = false
	for n, seen := range p.under {
		p.under[n] = seen + 1
		p.hangs = p.hangs || seen >= looks
	}
	switch {
	case p.hangs && !was:
		p.times++
		close(p.ended)
	case !p.hangs && was:
		p.ended = make(chan struct{})
	}
	return p.hangs, p.hangs && !was
}

// state tells whether the disk hangs, what is closed when it begins to, and how often it has.
func (p *patience) state() (hangs bool, begins <-chan struct{}, times int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hangs, p.ended, p.times
}

// watchPatience ends what waits for a disk that hangs: nothing more is asked of it until it
// has done what it was asked, and all that is arriving goes past it.
func (s *Store) watchPatience(ctx context.Context) {
	tick := time.NewTicker(s.patience.after / looks)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			hangs, began := s.patience.look()
			if began {
				s.ail(ErrHangs)
			}
			if hangs {
				s.failAll(ErrHangs)
			}
		}
	}
}

// failAll fails all that is arriving.
func (s *Store) failAll(err error) {
	s.mu.Lock()
	all := make([]*Partial, 0, len(s.partials))
	for _, p := range s.partials {
		all = append(all, p)
	}
	s.mu.Unlock()
	for _, p := range all {
		p.Fail(err)
	}
}

// orHangs runs do, which needs the disk, and returns its error, or ErrHangs as soon as the disk
// does. do may go on after that, and late is called when it has.
func (s *Store) orHangs(do func() error, late func()) error {
	hangs, begins, before := s.patience.state()
	if hangs {
		return ErrHangs
	}
	done := make(chan error, 1)
	go func() {
		err := do()
		if _, _, times := s.patience.state(); times != before {
			late()
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-begins:
		return ErrHangs
	}
}

// briefly runs do, whose end the caller can do without, and waits a second for it at the most.
// Nothing is done on a disk that hangs.
func (s *Store) briefly(do func()) {
	if hangs, _, _ := s.patience.state(); hangs {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

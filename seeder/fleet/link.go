package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// A link is an HTTP/1.1 connection that a mirror has had upgraded; on it both sides
// send JSON objects, one a line. An empty object says that the sender is there.
const (
	// Path is where mirrors ask for a link.
	Path     = "/v1/fleet"
	protocol = "murder-fleet/1"

	beatEvery = 15 * time.Second
	silentFor = 50 * time.Second // after which the other side is given up
	writeTime = 10 * time.Second

	maxLine  = 512 << 10 // bytes of a message to a host: an order with its credentials
	maxSaid  = 16 << 10  // bytes of a message to the seeder
	maxQueue = 2 * maxJobs
	// A host reports twice a second at the most, of a few orders.
	saidRate  = 50
	saidBurst = 500
)

// message is what seeder and host say to each other.
type message struct {
	Order  *Order  `json:"order,omitempty"`  // do this
	Cancel string  `json:"cancel,omitempty"` // leave the order of that name
	Bye    string  `json:"bye,omitempty"`    // why the seeder parts with the host
	Report *Report `json:"report,omitempty"` // of the host
	// Every is how long a host is to wait between two Accounts.
	Every   Duration `json:"every,omitempty"`
	Account *Account `json:"account,omitempty"` // of the host
}

// link is the seeder's side of one.
type link struct {
	member Member
	conn   net.Conn
	queue  chan message // to be sent; never waits
}

// send queues a message. A host that does not read loses its link; it gets all anew when
// it comes back.
func (l *link) send(m message) {
	select {
	case l.queue <- m:
	default:
		l.conn.Close()
	}
}

// serveLink answers GET /v1/fleet: it makes the connection a link.
func (f *Fleet) serveLink(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), protocol) {
		w.Header().Set("Upgrade", protocol)
		http.Error(w, "this is for mirrors: ask for an upgrade to "+protocol, http.StatusUpgradeRequired)
		return
	}
	member, err := parseMember(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ip, _, _ := net.SplitHostPort(r.RemoteAddr)
	if err := f.admit(member, ip); err != nil {
		w.Header().Set("Retry-After", "30")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer f.links.Done()
	defer f.left(ip)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot be upgraded", http.StatusHTTPVersionNotSupported)
		return
	}
	defer conn.Close()
	l := &link{member: member, conn: conn, queue: make(chan message, maxQueue)}
	conn.SetDeadline(time.Time{})
	head := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, head); err != nil {
		return
	}
	f.serve(l, r.RemoteAddr, buffered.Reader)
}

// admit takes a place for a link, which left gives back.
func (f *Fleet) admit(m Member, ip string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.ended:
		return errors.New("the seeder is stopping")
	case f.perIP[ip] >= maxPerIP:
		return fmt.Errorf("%d links from one address are enough", maxPerIP)
	case f.hosts[m.Name] == nil && len(f.hosts) >= maxHosts && !f.forgetOne():
		return fmt.Errorf("the fleet has %d hosts, which is the most", maxHosts)
	}
	f.perIP[ip]++
	f.links.Add(1)
	return nil
}

// forgetOne makes room for a host by forgetting one that is away. f.mu is held.
func (f *Fleet) forgetOne() bool {
	for name, h := range f.hosts {
		if h.link == nil {
			delete(f.hosts, name)
			return true
		}
	}
	return false
}

func (f *Fleet) left(ip string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.perIP[ip]--; f.perIP[ip] <= 0 {
		delete(f.perIP, ip)
	}
}

// serve keeps a link until either side ends it.
func (f *Fleet) serve(l *link, address string, r *bufio.Reader) {
	if !f.join(l, address) {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f.links.Go(func() { l.write(ctx, f.accountEvery) })
	err := l.read(r, func(m message) {
		if m.Report != nil {
			f.report(l, *m.Report)
		}
		if m.Account != nil {
			f.account(l, *m.Account)
		}
	})
	f.part(l, err)
}

// join makes a link that of its host. Of two with one name the newer counts: the older
// is one whose end we have not heard of, or that of another host with the same name.
func (f *Fleet) join(l *link, address string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false
	}
	h := f.hosts[l.member.Name]
	if h == nil {
		h = &host{}
		f.hosts[l.member.Name] = h
	}
	if h.link != nil {
		h.link.send(message{Bye: fmt.Sprintf("a host at %s goes by the name %s, too", address, l.member.Name)})
	}
	h.Member, h.address, h.link, h.since = l.member, address, l, time.Now()
	h.account.Arriving = nil
	f.changed()
	f.arrived(h)
	return true
}

// part notes that a host is away, unless it is here by another link.
func (f *Fleet) part(l *link, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := f.hosts[l.member.Name]; h != nil && h.link == l {
		h.link, h.since = nil, time.Now()
		h.account.Arriving = nil
		f.changed()
	}
	f.cfg.Log.Debug("host is away", "host", l.member.Name, "err", err)
}

// write sends what is queued, and that we are there, until ctx ends.
func (l *link) write(ctx context.Context, every func() Duration) {
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		var m message
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			m.Every = every()
		case m = <-l.queue:
		}
		if writeMessage(l.conn, m) != nil || m.Bye != "" {
			l.conn.Close() // read ends, too
			return
		}
	}
}

// read takes messages in until the host ends the link, or says too much or nothing.
func (l *link) read(r *bufio.Reader, take func(message)) error {
	limit := rate.NewLimiter(saidRate, saidBurst)
	return readMessages(l.conn, r, maxSaid, func(m message) error {
		if !limit.Allow() {
			return errors.New("it says too much")
		}
		take(m)
		return nil
	})
}

func writeMessage(conn net.Conn, m message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(writeTime))
	_, err = conn.Write(append(line, '\n'))
	return err
}

// readMessages calls take for each line, of at most so many bytes, until it returns an
// error, or the other side is silent for too long.
func readMessages(conn net.Conn, r io.Reader, most int, take func(message) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4<<10), most)
	for {
		conn.SetReadDeadline(time.Now().Add(silentFor))
		if !lines.Scan() {
			if err := lines.Err(); err != nil {
				return err
			}
			return io.EOF
		}
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("a message that is none: %w", err)
		}
		if err := take(m); err != nil {
			return err
		}
	}
}

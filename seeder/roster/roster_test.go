package roster

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// zone is a Resolver that answers from memory.
type zone struct {
	mu    sync.Mutex
	addrs map[string][]string
	srv   map[string][]*net.SRV
	down  bool
	asked int
}

var errDown = errors.New("no name server answers")

func (z *zone) LookupNetIP(_ context.Context, _, host string) (addrs []netip.Addr, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	if z.down {
		return nil, errDown
	}
	for _, a := range z.addrs[host] {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs, nil
}

func (z *zone) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	if z.down || service+proto != "" {
		return "", nil, errDown
	}
	return name, z.srv[name], nil
}

func (z *zone) questions() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked
}

func (z *zone) set(change func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	change()
}

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func parse(t testing.TB, texts ...string) (names []Name) {
	t.Helper()
	for _, text := range texts {
		n, err := Parse(text)
		if err != nil {
			t.Fatalf("Parse(%q) = %v", text, err)
		}
		if n.String() != text {
			t.Errorf("Parse(%q).String() = %q", text, n)
		}
		names = append(names, n)
	}
	return names
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"", "seeder:7070", "ftp://seeder", "http://", "http://user@seeder", "http://seeder?x=1", "http://seeder#x",
		"srv+http://seeder:7070", "srv+http://10.0.0.1", "srv+ftp://seeder", "srv+http://_http.seeder", "srv+srv+http://seeder"} {
		if n, err := Parse(text); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", text, n)
		}
	}
}

// Who is behind a name, and whose certificate they must show.
func TestSeeders(t *testing.T) {
	t.Parallel()
	dns := &zone{
		addrs: map[string][]string{
			"one.test":   {"10.0.0.1"},
			"dual.test":  {"10.0.0.1", "fd00::1"},
			"two.test":   {"10.0.0.2", "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1"},
			"pods.test":  {"fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"},
			"six.test":   {"fd00::2", "fd00::1"},
			"wrong.test": {"0.0.0.0", "224.0.0.1"},
		},
		srv: map[string][]*net.SRV{
			"_murder._tcp.srv.test": {{Target: "B.srv.test.", Port: 7071, Priority: 1}, {Target: "a.srv.test.", Port: 7070}},
			"_http._tcp.pods.test":  {{Target: "pod-0.pods.test.", Port: 80}},
			"_murder._tcp.no.test":  {{Target: ".", Port: 1}, {Target: "x.test."}},
		},
	}
	for _, c := range []struct {
		names []string
		want  []Seeder
	}{
		{nil, nil},
		{[]string{"http://10.9.9.9:7070"}, []Seeder{{URL: "http://10.9.9.9:7070"}}},
		{[]string{"http://one.test:7070"}, []Seeder{{URL: "http://one.test:7070"}}},
		{[]string{"https://dual.test"}, []Seeder{{URL: "https://dual.test"}}},
		{[]string{"http://two.test:7070"}, []Seeder{{URL: "http://10.0.0.1:7070"}, {URL: "http://10.0.0.2:7070"}}},
		{[]string{"http://two.test/murder", "http://10.0.0.1/murder"}, []Seeder{{URL: "http://10.0.0.1/murder"}, {URL: "http://10.0.0.2/murder"}}},
		{[]string{"https://pods.test:7070"}, []Seeder{{"https://10.0.0.1:7070", "pods.test"}, {"https://10.0.0.2:7070", "pods.test"}}},
		{[]string{"http://six.test"}, []Seeder{{URL: "http://[fd00::1]"}, {URL: "http://[fd00::2]"}}},
		{[]string{"http://wrong.test"}, []Seeder{{URL: "http://wrong.test"}}},
		{[]string{"http://unknown.test"}, []Seeder{{URL: "http://unknown.test"}}},
		{[]string{"srv+http://srv.test"}, []Seeder{{URL: "http://a.srv.test:7070"}, {URL: "http://b.srv.test:7071"}}},
		{[]string{"srv+https://srv.test"}, []Seeder{{"https://a.srv.test:7070", "srv.test"}, {"https://b.srv.test:7071", "srv.test"}}},
		{[]string{"srv+https://_http._tcp.pods.test"}, []Seeder{{"https://pod-0.pods.test:80", "pods.test"}}},
		{[]string{"srv+http://no.test"}, nil},
	} {
		r := Open(t.Context(), Config{Names: parse(t, c.names...), Resolver: dns, Log: testLog(t)})
		if got := r.Seeders(); !slices.Equal(got, c.want) {
			t.Errorf("%v are %v, want %v", c.names, got, c.want)
		}
	}
}

// No name makes more seeders than a mirror can announce to, and all hosts take the same.
func TestTooManySeeders(t *testing.T) {
	dns := &zone{addrs: map[string][]string{}}
	for i := range 2 * maxSeeders {
		dns.addrs["many.test"] = append(dns.addrs["many.test"], netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)}).String())
	}
	cfg := Config{Names: parse(t, "http://many.test"), Resolver: dns, Log: testLog(t)}
	one := Open(t.Context(), cfg).Seeders()
	slices.Reverse(dns.addrs["many.test"])
	if two := Open(t.Context(), cfg).Seeders(); len(one) != maxSeeders || !slices.Equal(one, two) {
		t.Errorf("%d and %d seeders, want the same %d", len(one), len(two), maxSeeders)
	}
}

// running is a Roster that is being kept up to date.
type running struct {
	*Roster
	mu   sync.Mutex
	told [][]Seeder
}

func run(t *testing.T, dns *zone, names ...string) *running {
	r := &running{Roster: Open(t.Context(), Config{Names: parse(t, names...), Resolver: dns, Log: testLog(t)})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- r.Run(ctx, func(now []Seeder) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, now)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return r
}

// mustTell fails the test unless exactly these changes have been told of.
func (r *running) mustTell(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	var got []string
	for _, told := range r.told {
		got = append(got, strings.Join(urls(told), " "))
	}
	if !slices.Equal(got, want) {
		t.Errorf("told of %q, want %q", got, want)
	}
}

// Seeders come and go within some ten seconds; when DNS is away nothing changes.
func TestSeedersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &zone{addrs: map[string][]string{"s.test": {"10.0.0.1", "10.0.0.2"}}}
		r := run(t, dns, "http://s.test")
		const turn = every + 2*soonest + every/5
		time.Sleep(turn)
		r.mustTell(t)
		dns.set(func() { dns.addrs["s.test"] = []string{"10.0.0.2", "10.0.0.3", "10.0.0.1"} })
		time.Sleep(turn)
		const three = "http://10.0.0.1 http://10.0.0.2 http://10.0.0.3"
		r.mustTell(t, three)
		dns.set(func() { dns.down = true })
		time.Sleep(time.Hour)
		dns.set(func() { dns.down, dns.addrs["s.test"] = false, nil }) // nobody: as good as no answer
		time.Sleep(time.Hour)
		r.mustTell(t, three)
		dns.set(func() { dns.addrs["s.test"] = []string{"10.0.0.3"} })
		time.Sleep(turn)
		r.mustTell(t, three, "http://s.test")

		before := dns.questions()
		time.Sleep(time.Hour)
		if n := dns.questions() - before; n > int(time.Hour/(every-2*soonest)) {
			t.Errorf("DNS was asked %d times in an hour", n)
		}
	})
}

// Who has lost a seeder looks soon, but not again and again.
func TestLookSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &zone{addrs: map[string][]string{"s.test": {"10.0.0.1", "10.0.0.2"}}}
		r := run(t, dns, "http://s.test")
		time.Sleep(3 * time.Second)
		before := dns.questions()
		dns.set(func() { dns.addrs["s.test"] = []string{"10.0.0.2", "10.0.0.3"} })
		r.Look()
		r.mustTell(t, "http://10.0.0.2 http://10.0.0.3")
		for range 100 {
			r.Look()
			time.Sleep(100 * time.Millisecond)
		}
		if n := dns.questions() - before; n > 11 {
			t.Errorf("DNS was asked %d times in 10 s", n)
		}
	})
}

// A name that nobody has answered for is asked for more often, and one that is an
// address never.
func TestUnansweredAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &zone{down: true, srv: map[string][]*net.SRV{"_murder._tcp.s.test": {{Target: "a.test.", Port: 1}}}}
		r := run(t, dns, "srv+http://s.test", "http://10.0.0.9")
		time.Sleep(time.Minute)
		r.mustTell(t)
		dns.set(func() { dns.down = false })
		time.Sleep(4 * time.Second)
		r.mustTell(t, "http://10.0.0.9 http://a.test:1")

		still := &zone{}
		run(t, still, "http://10.0.0.9")
		time.Sleep(time.Hour)
		if n := still.questions(); n != 0 {
			t.Errorf("DNS was asked %d times for an address", n)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"http://s:7070", "srv+https://_http._tcp.s.test", "https://[::1]:1/x", "srv+http://s"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(n.String())
		n.url.RawPath, again.url.RawPath = "", "" // one says of bytes that need no escape that they had none
		if err != nil || again != n {
			t.Errorf("Parse(%q) = %v, which is read as %v, %v", text, n, again, err)
		}
		if n.certified() == "" {
			t.Errorf("Parse(%q) has no name for certificates", text)
		}
	})
}

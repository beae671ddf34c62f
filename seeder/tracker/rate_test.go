package tracker

import (
	"fmt"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// One address that announces without end is refused, and no other for it.
func TestOneAddressAnnouncesWithoutEnd(t *testing.T) {
	const rate, burst = 5, 50
	r := newRates(rate, burst)
	ip := netip.MustParseAddr
	for i := range burst {
		if !r.allow(ip("10.0.0.1"), 0) || !r.allow(ip(fmt.Sprintf("fd00::%x", i+1)), 0) {
			t.Fatalf("announce %d was refused", i)
		}
	}
	if r.allow(ip("10.0.0.1"), 0) || r.allow(ip("::ffff:10.0.0.1"), 0) || r.allow(ip("fd00::ffff"), 0) {
		t.Error("no end of announces")
	}
	others := 0
	for i := range 100 {
		if r.allow(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), 0) {
			others++
		}
	}
	if others < 90 { // a few may share its count
		t.Errorf("%d of 100 other hosts may announce", others)
	}
	for i := range rate {
		if !r.allow(ip("10.0.0.1"), time.Second) {
			t.Fatalf("announce %d a second later was refused", i)
		}
	}
	if r.allow(ip("10.0.0.1"), time.Second) {
		t.Error("more than the rate a second later")
	}
}

// The refusal is BEP 3's, and nothing is listed for it.
func TestAnnouncesAreRefused(t *testing.T) {
	tr := New(Config{})
	tr.rates = newRates(0, 10)
	for i := range 20 {
		req := httptest.NewRequest("GET", "/announce"+queryOf(fmt.Sprint(i), i+1, ""), nil)
		req.RemoteAddr = "10.0.0.1:4711"
		w := httptest.NewRecorder()
		tr.ServeAnnounce(w, req)
		if refused := strings.Contains(w.Body.String(), "failure reason"); refused != (i >= 10) {
			t.Errorf("announce %d: %q", i, w.Body)
		}
	}
	if st := tr.Stats(); st.Peers != 10 || st.Announces != 10 {
		t.Errorf("stats = %+v, want ten peers", st)
	}
}

// However many swarms are announced to, so many peers are listed and no more.
func TestPeersOfAllSwarmsAreBounded(t *testing.T) {
	const most = 5000
	tr := New(Config{MaxTotal: most})
	for i := range 200 {
		for k := range 2000 {
			a := &announce{peerID: id(fmt.Sprint(i, k)), addrs: at("10.0.0.1", uint16(k+1)), left: 1}
			a.infohash[0], a.infohash[1] = byte(i), byte(k%3)
			req := &request{announce: *a}
			if err := tr.announced(t.Context(), req, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := tr.Stats().Peers; got != most {
		t.Errorf("%d peers are listed, want %d", got, most)
	}
}

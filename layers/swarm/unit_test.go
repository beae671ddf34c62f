package swarm

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestIdentityIsReadBack(t *testing.T) {
	for _, id := range []identity{
		{version: "1.0", seeder: true, zone: "a"},
		{version: "1.0", zone: "a", origins: 2},
		{version: "dev", zone: "rack 7 zone=b\n%"},
		{version: "dev"},
	} {
		if got := parseIdentity(id.String()); got != id {
			t.Errorf("parseIdentity(%q) = %+v, want %+v", id, got, id)
		}
	}
	for _, v := range []string{"", "aria2/1.36.0", "murder", "x murder/1 seeder", "murder/1 baker zone=%zz"} {
		if got := parseIdentity(v); got.seeder || got.zone != "" {
			t.Errorf("parseIdentity(%q) = %+v", v, got)
		}
	}
}

func TestParseAnswer(t *testing.T) {
	an, err := parseAnswer([]byte("d8:intervali7e12:min intervali2e5:peers12:\x0a\x00\x00\x01\x1b\xa9\x00\x00\x00\x00\x00\x016:peers618:\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x07e"))
	if err != nil || len(an.peers) != 2 || an.peers[0].String() != "10.0.0.1:7081" || an.peers[1].String() != "[fd00::1]:7" {
		t.Errorf("parseAnswer = %+v, %v", an, err)
	}
	if an.interval.Seconds() != 7 || an.minInterval.Seconds() != 2 {
		t.Errorf("intervals = %v and %v", an.interval, an.minInterval)
	}
	if _, err := parseAnswer([]byte("d14:failure reason2:noe")); err == nil {
		t.Error("a refusal is no error")
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("d8:intervali1800e5:peers6:\x0a\x00\x00\x01\x1b\xa9e"))
	f.Add([]byte("d5:peersld2:ip8:10.0.0.14:porti1eeee"))
	f.Add([]byte("d14:failure reason2:noe"))
	f.Fuzz(func(t *testing.T, b []byte) {
		an, err := parseAnswer(b)
		if err != nil {
			return
		}
		if an.interval < pauseMin || an.interval > pauseMax || an.minInterval > an.interval {
			t.Errorf("intervals %v and %v", an.interval, an.minInterval)
		}
		for _, p := range an.peers {
			if !p.IsValid() || p.Port() == 0 {
				t.Errorf("peer %v", p)
			}
		}
	})
}

func (b *bans) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ids)
}

// A peer that offers and sends nothing is not taken for one that answers because others
// bring what it was asked for.
func TestOthersDoNotAnswerForAPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{x: &exchange{client: &Client{began: time.Now()}}, link: &link{}}
		a := &ask{peer: p, piece: &piece{size: 4 * minChunk, chunk: minChunk, got: newBitset(4)}, open: newBitset(4)}
		p.asks = []*ask{a}
		for c := range 3 {
			time.Sleep(time.Hour) // in which nothing was asked of it
			if !p.askChunk() {
				t.Fatal("nothing to ask")
			}
			time.Sleep(deadAfter / 3)
			a.piece.got.set(c)
			a.settle(c)
		}
		p.askChunk()
		if silent := p.x.now() - p.heardAt; silent != deadAfter/3*3 {
			t.Errorf("it was silent for %v of %v", silent, deadAfter)
		}
		p.answered()
		if silent := p.x.now() - p.heardAt; silent != 0 || p.silent != 0 {
			t.Errorf("it has answered, and was silent for %v, %v before", silent, p.silent)
		}
	})
}

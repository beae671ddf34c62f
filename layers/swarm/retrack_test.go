package swarm

import "testing"

// Trackers come and go while blobs are shared and fetched: who is announced to one that
// goes says goodbye there, and finds others by those that are left.
func TestRetrack(t *testing.T) {
	before, after := newRealTracker(t), newRealTracker(t)
	b, _ := testBlob(3<<20, 1)
	more, _ := testBlob(1<<20, 2)
	secret, _ := testBlob(1<<20, 3)
	source := newHost(t, Config{})
	m := source.share(t, b, before.url)
	eventually(t, "announced", func() bool { return before.peers() == 1 })

	lost := newHost(t, Config{})
	p := lost.partial(t, m)
	fetched := make(chan error, 1)
	go func() { fetched <- lost.Fetch(t.Context(), m.Torrent(), p, []string{after.url}) }()
	eventually(t, "the other waits at a tracker of its own", func() bool { return after.peers() == 1 })

	source.Retrack([]string{after.url})
	if err := <-fetched; err != nil {
		t.Fatalf("Fetch = %v", err)
	}
	mustEqual(t, "blob", lost.read(t, p), b)
	eventually(t, "gone from the old tracker", func() bool { return before.peers() == 0 })

	source.share(t, more, before.url) // by who has not heard of the change
	eventually(t, "the next blob is announced to the new one", func() bool { return after.now.Load().Stats().Swarms == 2 })
	source.share(t, secret) // to nobody
	source.Retrack([]string{before.url, after.url})
	eventually(t, "both are told", func() bool { return before.now.Load().Stats().Swarms == 2 })
	if n := after.now.Load().Stats().Swarms; n != 2 {
		t.Errorf("%d swarms are announced, want 2: one is not to be", n)
	}
	source.Retrack(nil)
	eventually(t, "none is", func() bool { return before.peers() == 0 && after.peers() == 1 })
	source.Retrack([]string{after.url})
	eventually(t, "all are again", func() bool { return after.peers() == 3 })
}

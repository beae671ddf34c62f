package main

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/seeder/roster"
)

// Of all seeders that are told of a push exactly one fetches a blob, and who cannot tell
// which it is fetches it in any case.
func TestShare(t *testing.T) {
	var all []roster.Seeder
	for port := range 3 {
		all = append(all, roster.Seeder{URL: fmt.Sprintf("http://127.0.0.1:%d", 7000+port)})
	}
	at := func(port string) *share {
		s := &share{port: port, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		s.set(t.Context(), all)
		return s
	}
	shares, stranger := []*share{at("7000"), at("7001"), at("7002")}, at("7003")
	fetched := make([]int, len(shares))
	for i := range 300 {
		d, by := digest.FromString(fmt.Sprint(i)), 0
		for n, s := range shares {
			if s.mine(d) {
				fetched[n]++
				by++
			}
		}
		if by != 1 {
			t.Errorf("%s is fetched by %d seeders", d, by)
		}
		if !stranger.mine(d) {
			t.Errorf("%s is left to others by who does not know which of them it is", d)
		}
	}
	for n, blobs := range fetched {
		if blobs < 60 { // of a hundred or so
			t.Errorf("seeder %d fetches %d of 300 blobs", n, blobs)
		}
	}
	shares[0].set(t.Context(), all[:1])
	if !shares[0].mine(digest.FromString("1")) || !shares[0].mine(digest.FromString("2")) {
		t.Error("who is left alone does not fetch all")
	}
	if s := (&share{port: "7000"}); s.mine("sha256:x") != true {
		t.Error("who has heard of nobody does not fetch all")
	}
}

package integration

import (
	"testing"
)

// The tests of this file have no murder in them: they prove the harness, with
// engines that pull straight from the registry.

func TestBigImageIsBig(t *testing.T) {
	f := loadFixtures(t)
	if got := f.Big.Tree.Size(); got < 200e6 {
		t.Errorf("the big image's tree has %d bytes, want 200 MB or more", got)
	}
	layers, err := f.Big.Images["linux/amd64"].Layers()
	if err != nil {
		t.Fatal(err)
	}
	fromTars := tree{}
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := fromTars.apply(r); err != nil {
			t.Fatal(err)
		}
		size, _ := l.Size()
		t.Log(l.MediaType())
		t.Log(size)
	}
	sameTree(t, "layers", fromTars, f.Big.Tree)
}

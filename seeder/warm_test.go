package seeder

import (
	"fmt"
	"testing"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder/pushes"
)

// The line of pushes has an end, at which registries are told to come again; what is in
// it already has room.
func TestWarmingIsBounded(t *testing.T) {
	w := newWarmer(&Seeder{})
	push := func(i int) pushes.Push {
		return pushes.Push{Repo: registry.Repository{Host: "reg.test", Name: "app"}, Kind: registry.Manifest, Tag: fmt.Sprint("v", i)}
	}
	for i := range maxWarming {
		if !w.add(push(i)) {
			t.Fatalf("no room for push %d", i)
		}
	}
	if w.add(push(maxWarming)) {
		t.Error("there is room for more")
	}
	if !w.add(push(7)) {
		t.Error("no room for what is in line")
	}
	if p, ok := w.next(); !ok || p != push(0) {
		t.Errorf("the first in line is %v", p)
	}
	if !w.add(push(maxWarming)) || w.add(push(0)) {
		t.Error("one has left, and there is not room for one")
	}
}

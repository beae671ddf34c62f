package sim

import "testing"

func TestEqualLinks(t *testing.T) {
	t.Log(simulate(equal(16, 128<<20, 64<<10, 25)))
	t.Log(simulate(equal(100, 128<<20, 64<<10, 25)))
	t.Log(simulate(equal(100, 1<<30, 512<<10, 1000)))
	t.Log(simulate(equal(1000, 1<<28, 512<<10, 1000)))
}

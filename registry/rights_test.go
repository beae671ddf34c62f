package registry

import (
	"fmt"
	"io"
	"slices"
	"testing"
)

func TestRights(t *testing.T) {
	o := newOrigin()
	d := o.push("a", "", "blob")
	o.readers["a"] = "ann"
	repo := Repository{"origin.test", "a"}

	var r Rights
	if body, _, err := r.GetBlob(t.Context(), o.client(), d, 0); body != nil || err == nil || Refused(err) {
		t.Errorf("GetBlob for nobody = %v, %v, want an Unavailable", body, err)
	}
	o.expect(t)

	r.Add(repo, basic("ann"))
	r.Add(repo, basic("eve")) // has been refused since
	body, size, err := r.GetBlob(t.Context(), o.client(), d, 0)
	if err != nil || size != 4 {
		t.Fatalf("GetBlob = %d, %v", size, err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); string(got) != "blob" || err != nil {
		t.Errorf("body = %q, %v", got, err)
	}
	o.expect(t, "GET a/blobs", "GET a/blobs")

	o.with(func() { o.away = true })
	if _, _, err := r.GetBlob(t.Context(), o.client(), d, 0); err == nil || Refused(err) {
		t.Errorf("GetBlob from a registry that is away = %v", err)
	}
	o.expect(t, "GET a/blobs") // another caller would not help
	o.with(func() { o.away, o.status = false, 404 })
	if _, _, err := r.GetBlob(t.Context(), o.client(), d, 0); status(err) != 404 {
		t.Errorf("GetBlob of what is gone = %v, want a 404", err)
	}
}

func TestRightsKeepTheLatest(t *testing.T) {
	var r Rights
	repo := Repository{"h", "a"}
	for i := range 20 {
		r.Add(repo, fmt.Sprint(i))
		r.Add(repo, "again")
	}
	var got []string
	r.Each(func(_ Repository, authorization string) error {
		got = append(got, authorization)
		return newError(403, CodeDenied, "no")
	})
	if want := []string{"again", "19", "18", "17", "16", "15", "14", "13"}; !slices.Equal(got, want) {
		t.Errorf("callers = %q, want %q", got, want)
	}
}

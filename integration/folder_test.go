package integration

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	digest "github.com/opencontainers/go-digest"
)

// newFolder is a folder to push: one large file, many small ones, and what else a folder has.
func newFolder(t testing.TB) string {
	t.Helper()
	dir := newRoot(t)
	r := rand.NewChaCha8([32]byte{1})
	weights := make([]byte, 24<<20)
	r.Read(weights)
	for i := range 200 {
		small := make([]byte, 10+30*i)
		r.Read(small)
		writeFile(t, filepath.Join(dir, "many", fmt.Sprint(i)), string(small))
	}
	writeFile(t, filepath.Join(dir, "weights.bin"), string(weights))
	writeFile(t, filepath.Join(dir, "bin", "run"), "#!/bin/sh\n")
	err := os.Chmod(filepath.Join(dir, "bin", "run"), 0o750)
	if err == nil {
		err = os.Symlink("../weights.bin", filepath.Join(dir, "bin", "latest"))
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "empty"), 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// folderText is a folder as text: names, modes, what is in files and where symlinks lead.
func folderText(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var what string
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what = digest.FromBytes(content).String()
		case info.Mode()&fs.ModeSymlink != 0:
			if what, err = os.Readlink(path); err != nil {
				return err
			}
		}
		fmt.Fprintln(&b, strings.TrimPrefix(path, dir), info.Mode(), what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// pushFolder pushes dir and returns what `murder push --output json` says.
func pushFolder(t testing.TB, env []string, dir, ref string) (result struct{ Sent, Layers int64 }) {
	t.Helper()
	stdout, stderr, code := runMurder(t, env, "push", dir, ref, "--output", "json")
	if code != 0 {
		t.Fatalf("push exits %d\n%s%s", code, stdout, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &result); err != nil {
		t.Fatalf("push says %q: %v", stdout, err)
	}
	return result
}

// TestFetchFleet pushes a folder, and has eight hosts fetch it at once.
func TestFetchFleet(t *testing.T) {
	f := startFleet(t, fleetConfig{Mirrors: 8})
	dir, ref := newFolder(t), f.Registry.Addr+"/models/llm:v1"
	want := folderText(t, dir)
	if first := pushFolder(t, nil, dir, ref); first.Sent == 0 || first.Layers != 2 {
		t.Errorf("the first push says %+v, want two layers, the file and a tar", first)
	}
	if again := pushFolder(t, nil, dir, ref); again.Sent != 0 {
		t.Errorf("the same folder again sends %d bytes, want none", again.Sent)
	}
	f.Registry.Forget()

	root := newRoot(t)
	var wg sync.WaitGroup
	for i, m := range f.Mirrors {
		wg.Go(func() {
			stdout, stderr, code := runMurder(t, nil, "fetch", ref, "-o", filepath.Join(root, fmt.Sprint(i)), "--mirror", m.URL(), "--output", "json")
			if code != 0 || !strings.Contains(stdout, `"through": "mirror"`) {
				t.Errorf("fetch at host %d exits %d, want that it is here by the mirror\n%s%s", i, code, stdout, stderr)
			}
		})
	}
	wg.Wait()
	for i := range f.Mirrors {
		if got := folderText(t, filepath.Join(root, fmt.Sprint(i))); got != want {
			t.Errorf("host %d has\n%swant\n%s", i, got, want)
		}
	}
	f.checkEachBlobOnce(t, artifactBlobs(t, f.Registry, "models/llm", "v1")...)

	// A folder with the files of this one and a few more sends the few.
	writeFile(t, filepath.Join(dir, "large2"), strings.Repeat("more", 1<<20))
	if more := pushFolder(t, nil, dir, ref); more.Sent != 4<<20 {
		t.Errorf("a push with one more file sends %d bytes, want its %d", more.Sent, 4<<20)
	}
}

// artifactBlobs are the layers of what was pushed, as the registry's storage has it.
func artifactBlobs(t testing.TB, r *testRegistry, repo, tag string) (blobs []blobInfo) {
	t.Helper()
	manifest := get(t, "http://"+r.Addr+"/v2/"+repo+"/manifests/"+tag, "Accept: "+string(types.OCIManifestSchema1))
	var m struct {
		Layers []struct {
			Digest digest.Digest
			Size   int64
		}
	}
	if err := json.Unmarshal([]byte(manifest.Body), &m); err != nil || len(m.Layers) == 0 {
		t.Fatalf("manifest of %s: %v\n%s", repo, err, manifest.Body)
	}
	for _, l := range m.Layers {
		blobs = append(blobs, blobInfo{Digest: l.Digest, Size: l.Size})
	}
	return blobs
}

// largest is the digest of the largest of blobs.
func largest(blobs []blobInfo) digest.Digest {
	l := blobs[0]
	for _, b := range blobs {
		if b.Size > l.Size {
			l = b
		}
	}
	return l.Digest
}

// TestFetchKilled kills a fetch in the middle of the large file, and then the mirror of another: the folder of the first
// has no file, and the next fetch goes on; the second goes on at the registry.
func TestFetchKilled(t *testing.T) {
	f := startFleet(t, fleetConfig{Mirrors: 1})
	dir, ref := newFolder(t), f.Registry.Addr+"/models/llm:v1"
	pushFolder(t, nil, dir, ref)
	weights := largest(artifactBlobs(t, f.Registry, "models/llm", "v1"))
	out := filepath.Join(newRoot(t), "out")
	hold := f.Registry.Hold(weights, 5<<20)
	start := func(args ...string) *process {
		return startProcess(t, processConfig{Name: "murder fetch", Args: append([]string{murderProgram(t), "fetch", ref, "-o", out}, args...)})
	}
	p := start("--mirror", f.Mirrors[0].URL())
	hold.wait(t)
	waitUntil(t, "bytes of the large file", func() error {
		info, err := os.Stat(filepath.Join(out, ".murder-fetch", "weights.bin"))
		if err == nil && info.Size() < onePiece {
			err = fmt.Errorf("it has %d", info.Size())
		}
		return err
	})
	p.Kill()
	if entries, err := os.ReadDir(out); err != nil || len(entries) != 1 || entries[0].Name() != ".murder-fetch" {
		t.Errorf("a killed fetch has left %v, %v, want no file", entries, err)
	}

	p = start("--mirror", f.Mirrors[0].URL())
	waitUntil(t, "bytes of the large file", func() error {
		info, err := os.Stat(filepath.Join(out, ".murder-fetch", "weights.bin"))
		if err == nil && info.Size() < onePiece {
			err = fmt.Errorf("it has %d", info.Size())
		}
		return err
	})
	f.Mirrors[0].Kill()
	hold.Release()
	p.waitLine(t, "what became of the mirror", func(line string) bool { return strings.Contains(line, "asking the registry itself") })
	p.waitLine(t, "its result", func(line string) bool { return strings.Contains(line, "through registry") })
	if got, want := folderText(t, out), folderText(t, dir); got != want {
		t.Errorf("the folder has\n%swant\n%s", got, want)
	}
}

// TestFetchPrivate pushes and fetches with a user's own credentials, and not with another's.
func TestFetchPrivate(t *testing.T) {
	f := startFleet(t, fleetConfig{Registry: registryConfig{Users: map[string]string{"alice": "secret"}}, Mirrors: 1})
	dir, ref, root := newFolder(t), f.Registry.Addr+"/models/llm:v1", newRoot(t)
	alice := dockerLogin(t, f.Registry.Addr, "alice:secret")
	pushFolder(t, alice, dir, ref)
	fetch := func(name string, env []string) int {
		stdout, stderr, code := runMurder(t, env, "fetch", ref, "-o", filepath.Join(root, name), "--mirror", f.Mirrors[0].URL())
		t.Logf("fetch as %s exits %d: %s%s", name, code, stdout, stderr)
		return code
	}
	if code := fetch("alice", alice); code != 0 {
		t.Error("who may, cannot")
	}
	for name, env := range map[string][]string{
		"mallory": dockerLogin(t, f.Registry.Addr, "alice:guessed"), "nobody": {"DOCKER_CONFIG=" + newRoot(t)},
	} {
		if code := fetch(name, env); code != 1 {
			t.Errorf("fetch as %s exits %d, want 1, though all is in the cache", name, code)
		}
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			t.Errorf("there is a folder for %s", name)
		}
	}
	if got, want := folderText(t, filepath.Join(root, "alice")), folderText(t, dir); got != want {
		t.Errorf("the folder has\n%swant\n%s", got, want)
	}
}

// TestFetchByTLS fetches through a mirror of a fleet with TLS, as one of the fleet and as a stranger, to whom the mirror
// says nothing and the registry what it says to all.
func TestFetchByTLS(t *testing.T) {
	c := newCerts(t)
	f := startFleet(t, fleetConfig{Mirrors: 1, Certs: c})
	dir, ref, root := newFolder(t), f.Registry.Addr+"/models/llm:v1", newRoot(t)
	pushFolder(t, nil, dir, ref)
	for through, certs := range map[string]*certs{"mirror": c, "registry": newCerts(t)} {
		out := filepath.Join(root, through)
		args := append([]string{"fetch", ref, "-o", out, "--mirror", "https://" + f.Mirrors[0].Addr}, certs.flags()...)
		stdout, stderr, code := runMurder(t, nil, args...)
		if code != 0 || !strings.Contains(stdout, "through "+through) {
			t.Errorf("fetch exits %d, want that it came through the %s\n%s%s", code, through, stdout, stderr)
		}
		if got, want := folderText(t, out), folderText(t, dir); got != want {
			t.Errorf("the folder has\n%swant\n%s", got, want)
		}
	}
}

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestWrongBytesNeverEndPolitely has a registry that flips one bit of a blob,
// at its end: the client must see the connection cut, and the blob must not
// be kept. Once the registry is mended, the same pull works.
func TestWrongBytesNeverEndPolitely(t *testing.T) {
	for _, way := range []string{"mirror alone", "seeder", "mirror behind a seeder"} {
		t.Run(way, func(t *testing.T) {
			f, _, blob := failFleet(t, 1<<20, fleetConfig{Mirrors: 1})
			d := map[string]*daemon{"seeder": f.Seeder, "mirror behind a seeder": f.Mirrors[0]}[way]
			if d == nil {
				d = startMirror(t, daemonConfig{Insecure: []string{f.Registry.Addr}})
			}
			url := d.Blob(f.Registry.Addr, failRepo, blob.Digest)
			f.Registry.Replace(func(w http.ResponseWriter, r *http.Request) {
				if digestOf(r.URL.Path) == blob.Digest && r.Method == http.MethodGet {
					w = &flipper{ResponseWriter: w, at: blob.Size - 1}
				}
				f.Registry.Forward(w, r)
			})
			if err := checkBlob(t, url, blob.Digest); err == nil || strings.Contains(err.Error(), "do not have the digest") {
				t.Errorf("a pull of wrong bytes = %v, want the connection cut or an error status", err)
			}
			for _, d := range []*daemon{d, f.Seeder} {
				if _, err := os.Stat(filepath.Join(d.DataDir, "blobs", "sha256", blob.Digest.Encoded())); err == nil {
					t.Errorf("%s keeps the wrong bytes", d.name)
				}
			}
			f.Registry.Replace(nil)
			waitUntil(t, "the right bytes", func() error { return checkBlob(t, url, blob.Digest) })
		})
	}
}

// flipper flips a bit of the byte at an offset of a blob, whatever range of it
// a body is.
type flipper struct {
	http.ResponseWriter
	at   int64
	sent int64 // up to which offset
}

func (w *flipper) WriteHeader(status int) {
	if _, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-", &w.sent); err != nil {
		w.sent = 0
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *flipper) Write(b []byte) (int, error) {
	if i := w.at - w.sent; i >= 0 && i < int64(len(b)) {
		b = bytes.Clone(b)
		b[i] ^= 1
	}
	n, err := w.ResponseWriter.Write(b)
	w.sent += int64(n)
	return n, err
}

// TestShutdownIsCleanAndBounded ends a daemon with SIGTERM while a client is in
// the middle of a blob that does not arrive: it does not wait for that, ends with
// exit code 0, and the client's answer does not end as if it were whole.
func TestShutdownIsCleanAndBounded(t *testing.T) {
	for _, role := range []string{"mirror", "seeder"} {
		t.Run(role, func(t *testing.T) {
			f, _, blob := failFleet(t, 4<<20, fleetConfig{Mirrors: 1})
			d := map[string]*daemon{"mirror": f.Mirrors[0], "seeder": f.Seeder}[role]
			held := f.Registry.Hold(blob.Digest, blob.Size/2)
			body, err := openBlob(t, d.Blob(f.Registry.Addr, failRepo, blob.Digest))
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			held.wait(t)

			d.Signal(t, syscall.SIGTERM)
			asked := time.Now()
			read := make(chan error, 1)
			go func() {
				n, err := io.Copy(io.Discard, body)
				if err == nil && n < blob.Size {
					err = fmt.Errorf("ended politely after %d of %d bytes", n, blob.Size)
				} else if err != nil {
					err = nil
				}
				read <- err
			}()
			select {
			case <-d.exited:
				t.Logf("%s stopped after %v (10s are promised)", role, time.Since(asked).Round(time.Millisecond))
			case <-time.After(readyWithin):
				t.Fatalf("%s does not stop", role)
			}
			if d.err != nil {
				t.Errorf("%s ended with %v, want exit code 0", role, d.err)
			}
			if err := <-read; err != nil {
				t.Errorf("the open response %v", err)
			}
		})
	}
}

// TestFullDiskStillPulls gives a mirror a disk of 4 MiB and pulls a blob of
// 16 MiB through it: caching is off then, pulling is not.
func TestFullDiskStillPulls(t *testing.T) {
	needsRoot(t)
	for name, withSeeder := range map[string]bool{"with a seeder": true, "alone": false} {
		t.Run(name, func(t *testing.T) {
			f, _, blob := failFleet(t, 16<<20, fleetConfig{})
			cfg := daemonConfig{Insecure: []string{f.Registry.Addr}, DataDir: filepath.Join(newRoot(t), "small"), DiskSize: "4m"}
			if withSeeder {
				cfg.Seeders = []string{f.Seeder.URL()}
			}
			m := startMirror(t, cfg)
			for range 2 {
				if err := checkBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest); err != nil {
					t.Error(err)
				}
			}
			t.Log(m.Metrics(t).Series("murder_fallbacks_total"))
		})
	}
}

// TestCacheIsAnOCILayout reads a mirror's cache with skopeo, under the name by
// which the image was pulled.
func TestCacheIsAnOCILayout(t *testing.T) {
	images, s := loadFixtures(t), newSkopeo(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}, Mirrors: 1})
	m := f.Mirrors[0]
	if _, err := pullImage(t, m, f.Registry.Addr, publicRepo, fixtureTag); err != nil {
		t.Fatal(err)
	}
	for _, b := range allBlobs(t, images.Public) {
		waitUntil(t, "the blob has its name", func() error {
			_, err := os.Stat(filepath.Join(m.DataDir, "blobs", "sha256", b.Digest.Encoded()))
			return err
		})
	}
	var index ocispec.Index
	waitUntil(t, "index.json has the one manifest", func() error { // many changes are written at once
		readJSON(t, filepath.Join(m.DataDir, "index.json"), &index)
		if len(index.Manifests) != 1 {
			text, _ := json.Marshal(index)
			return fmt.Errorf("index.json = %s", text)
		}
		return nil
	})
	ref := index.Manifests[0].Annotations[ocispec.AnnotationRefName]
	if want := f.Registry.Addr + "/" + publicRepo + ":" + fixtureTag; ref != want {
		t.Errorf("the manifest's name = %q, want %q", ref, want)
	}
	out := filepath.Join(newRoot(t), "out")
	run(t, processConfig{Env: s.env(), Args: []string{program(t, "skopeo"), "--policy", filepath.Join(s.dir, "policy.json"),
		"copy", "--quiet", "oci:" + m.DataDir + ":" + ref, "dir:" + out}})
	for _, b := range allBlobs(t, images.Public) {
		content, err := os.ReadFile(filepath.Join(out, b.Digest.Encoded()))
		if err != nil || b.Digest.Algorithm().FromBytes(content) != b.Digest {
			t.Errorf("skopeo's copy of %s has %d bytes, %v", b.Digest, len(content), err)
		}
	}
}

// TestFoldersAreDeleted deletes the data folders of a mirror and of the seeder in the middle
// of a pull. The pull ends, so does the next, and soon both cache again.
func TestFoldersAreDeleted(t *testing.T) {
	f, _, blob := failFleet(t, 16<<20, fleetConfig{Mirrors: 1})
	m := f.Mirrors[0]
	hold := f.Registry.Hold(blob.Digest, 4<<20)
	body, err := openBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest))
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	hold.wait(t)
	for _, dir := range []string{m.DataDir, f.Seeder.DataDir} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	hold.Release()
	verifier := blob.Digest.Verifier()
	if _, err := io.Copy(verifier, body); err != nil || !verifier.Verified() {
		t.Errorf("the pull in whose middle the folders were deleted: right %v, %v", verifier.Verified(), err)
	}
	if err := checkBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest); err != nil {
		t.Errorf("the pull after it: %v", err)
	}
	for _, d := range []*daemon{m, f.Seeder} {
		d.waitUntil(t, "the folder is made again", func() error {
			_, err := os.Stat(filepath.Join(d.DataDir, "oci-layout"))
			return err
		})
	}
	other, err := makeImage(newRoot(t), "folders", 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	push(t, f.Registry.Addr, failRepo+":v2", other, nil)
	if _, err := pullImage(t, m, f.Registry.Addr, failRepo, "v2"); err != nil {
		t.Error(err)
	}
	layer := layerBlobs(t, other)[0].Digest
	for _, d := range []*daemon{m, f.Seeder} {
		d.waitUntil(t, "blobs are cached again", func() error {
			_, err := os.Stat(filepath.Join(d.DataDir, "blobs", layer.Algorithm().String(), layer.Encoded()))
			return err
		})
	}
}

package layers

import (
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/anacrolix/torrent/metainfo"
	"github.com/opencontainers/go-digest"
)

func TestPieceLength(t *testing.T) {
	const kib, mib, gib = 1 << 10, 1 << 20, 1 << 30
	for _, test := range []struct {
		size, want int64
		pieces     int
	}{
		{0, 16 * kib, 0},
		{1, 16 * kib, 1},
		{16 * kib, 16 * kib, 1},
		{16*kib + 1, 16 * kib, 2},
		{16 * mib, 16 * kib, 1024},
		{16*mib + 1, 32 * kib, 513},
		{32 * mib, 32 * kib, 1024},
		{32*mib + 1, 64 * kib, 513},
		{128 * mib, 64 * kib, 2048},
		{256 * mib, 64 * kib, 4096},
		{256*mib + 1, 128 * kib, 2049},
		{512 * mib, 128 * kib, 4096},
		{512*mib + 1, 256 * kib, 2049},
		{1 * gib, 256 * kib, 4096},
		{1*gib + 1, 512 * kib, 2049},
		{32 * gib, 8 * mib, 4096},
		{100 * gib, 16 * mib, 6400},
		{1<<63 - 1, 16 * mib, 1 << 39},
		{-1, 16 * kib, 0},
	} {
		if got := PieceLength(test.size); got != test.want {
			t.Errorf("PieceLength(%d) = %d, want %d", test.size, got, test.want)
		}
		if got := pieceCount(test.size); got != test.pieces {
			t.Errorf("pieceCount(%d) = %d, want %d", test.size, got, test.pieces)
		}
	}
}

// The library reads what is written here by hand, and hashes it to the same swarm.
func TestMetainfoIsATorrent(t *testing.T) {
	b := content(1, 600<<10)
	m := metainfoOf(t, b)
	lib, err := metainfo.Load(bytes.NewReader(m.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	info, err := lib.UnmarshalInfo()
	if err != nil {
		t.Fatal(err)
	}
	want := "sha256-" + m.Digest().Encoded()
	if info.Name != want || info.Length != 600<<10 || info.PieceLength != 16<<10 || info.Private == nil || !*info.Private {
		t.Errorf("info is %+v", info)
	}
	if !bytes.Equal(info.Pieces, sums(b, int64(len(b)))) {
		t.Error("pieces differ")
	}
	if lib.HashInfoBytes() != metainfo.Hash(m.InfoHash()) {
		t.Errorf("infohash is %s, want %s", m.InfoHash(), lib.HashInfoBytes())
	}
	if m.Pieces() != 38 || m.PieceSize(0) != 16<<10 || m.PieceSize(37) != 8<<10 || m.Piece(37) != sha1.Sum(b[592<<10:]) {
		t.Errorf("%d pieces, of %d and %d bytes", m.Pieces(), m.PieceSize(0), m.PieceSize(9))
	}
}

func TestParseMetainfo(t *testing.T) {
	m := metainfoOf(t, content(1, 600<<10))
	good := string(m.Bytes())
	for _, in := range []string{
		good,
		"d8:announce17:http://t/announce" + good[1:],
		good[:len(good)-1] + "5:nodesll1:hi1eeee",
	} {
		got, err := ParseMetainfo([]byte(in))
		if err != nil {
			t.Errorf("ParseMetainfo(%.40q) = %v", in, err)
			continue
		}
		if !bytes.Equal(got.Bytes(), m.Bytes()) || got.InfoHash() != m.InfoHash() || got.Digest() != m.Digest() || got.Size() != m.Size() {
			t.Errorf("ParseMetainfo(%.40q) is other metainfo", in)
		}
	}
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in metainfo", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for _, in := range []string{
		"", "d", "de", "i1e", good[:len(good)-1], good + "e", good[1:],
		replace("7:privatei1e", "7:privatei0e"),
		replace("7:privatei1e", "7:privatei1e6:source1:x"),
		replace("piece lengthi16384e", "piece lengthi131072e"),
		replace("6:lengthi614400e", "6:lengthi614400000e"),
		replace("6:lengthi614400e", "6:lengthi-1e"),
		replace("6:lengthi614400e", "6:lengthi0614400e"),
		replace("6:lengthi614400e", "6:lengthi9223372036854775807e"),
		replace("71:sha256-", "71:sha257-"),
		replace("71:sha256-", "71:../256-"),
		replace("6:pieces760:", "6:pieces99999999999999999999:"),
		"d4:info" + strings.Repeat("l", maxMetainfo-10), // so deep that recursion would end the process
	} {
		if _, err := ParseMetainfo([]byte(in)); err == nil {
			t.Errorf("ParseMetainfo(%.80q) succeeded", in)
		}
	}
	if _, err := ParseMetainfo(make([]byte, maxMetainfo+1)); err == nil {
		t.Error("metainfo of any length is read")
	}
}

func TestEmptyBlobHasMetainfo(t *testing.T) {
	m := metainfoOf(t, nil)
	got, err := ParseMetainfo(m.Bytes())
	if err != nil || got.Pieces() != 0 || got.Size() != 0 {
		t.Errorf("ParseMetainfo = %v, %v", got, err)
	}
}

func FuzzParseMetainfo(f *testing.F) {
	m := metainfoOf(f, content(1, 300<<10))
	f.Add(m.Bytes())
	f.Add(metainfoOf(f, nil).Bytes())
	f.Add([]byte("d8:announce3:url4:infode"))
	f.Add([]byte("d4:infod6:lengthi1e4:name0:6:pieces20:aaaaaaaaaaaaaaaaaaaaee"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMetainfo(b)
		if err != nil {
			return
		}
		again, err := ParseMetainfo(m.Bytes())
		if err != nil || !bytes.Equal(again.Bytes(), m.Bytes()) || again.InfoHash() != m.InfoHash() {
			t.Errorf("what was parsed is not parsed again: %v", err)
		}
		if err := checkDigest(m.Digest()); err != nil {
			t.Error(err)
		}
		if !bytes.Contains(b, m.InfoBytes()) {
			t.Error("infohash is not that of the bytes that were parsed")
		}
		for i := range m.Pieces() {
			m.Piece(i)
		}
	})
}

func TestCheckDigest(t *testing.T) {
	hex := strings.Repeat("0a", 64)
	for d, want := range map[digest.Digest]error{
		digest.Digest("sha256:" + hex[:64]):                  nil,
		digest.Digest("sha512:" + hex):                       nil,
		digest.Digest("sha384:" + hex[:96]):                  digest.ErrDigestUnsupported,
		digest.Digest("sha256:" + hex[:62]):                  digest.ErrDigestInvalidLength,
		digest.Digest("sha256:" + strings.ToUpper(hex[:64])): digest.ErrDigestInvalidFormat,
		"sha256:../../../../etc/passwd":                      digest.ErrDigestInvalidLength,
		"../x:0a":                                            digest.ErrDigestInvalidFormat,
		"":                                                   digest.ErrDigestInvalidFormat,
	} {
		if err := checkDigest(d); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("checkDigest(%q) = %v, want %v", d, err, want)
		}
	}
	d := sha256Of(nil)
	if got, err := parseFileName(fileName(d)); got != d || err != nil {
		t.Errorf("parseFileName(%q) = %v, %v", fileName(d), got, err)
	}
}

// The same bytes have the same metainfo, however they came and whoever hashed them.
func TestMetainfoIsTheSameEachWay(t *testing.T) {
	for _, size := range []int{0, 1, minPieceLength - 1, minPieceLength, 1<<20 + 12345} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			b := content(2, size)
			d := sha256Of(b)
			want := metainfoOf(t, b).Bytes()

			ways := map[string]func(s *Store) *Store{
				"followed": func(s *Store) *Store { put(t, s, b); return s },
				"by pieces": func(s *Store) *Store {
					m := metainfoOf(t, b)
					p := partial(t, s, d, size)
					if err := p.SetTorrent(m.Torrent()); err != nil {
						t.Fatal(err)
					}
					writePieces(t, p, m, b)
					await(t, p.Done())
					return s
				},
				"resumed": func(s *Store) *Store {
					p := partial(t, s, d, size)
					if err := p.Append(b[:size/2]); err != nil {
						t.Fatal(err)
					}
					s.Close()
					s = openStore(t, StoreConfig{Dir: s.dir})
					if _, ok := s.Stat(d); ok { // the empty blob
						return s
					}
					p = partial(t, s, d, size)
					if err := (&web{b: b}).fill(t, p); err != nil {
						t.Fatal(err)
					}
					await(t, p.Done())
					return s
				},
				"from the whole blob": func(s *Store) *Store {
					put(t, s, b)
					if err := remove(s.torrentPath(d)); err != nil {
						t.Fatal(err)
					}
					return s
				},
			}
			for way, do := range ways {
				s := do(openStore(t, StoreConfig{}))
				m, err := s.Metainfo(d)
				if err != nil {
					t.Errorf("%s: %v", way, err)
				} else if !bytes.Equal(m.Bytes(), want) {
					t.Errorf("%s: metainfo differs", way)
				}
				wantBlob(t, s, d, b)
			}
		})
	}
}

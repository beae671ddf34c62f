package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"fmt"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed assets
var files embed.FS

// asset is one file of the page.
type asset struct {
	name         string
	plain, small []byte // small: gzip
	etag         string
}

// assets are the page's files by the path at which they are served.
func assets() map[string]asset {
	return map[string]asset{
		"/{$}":            open("index.html"),
		"/page/style.css": open("style.css"),
		"/page/page.js":   open("page.js"),
	}
}

func open(name string) asset {
	plain, err := files.ReadFile(path.Join("assets", name))
	if err != nil {
		panic(err) // not embedded: a mistake in this file
	}
	var small bytes.Buffer
	z, _ := gzip.NewWriterLevel(&small, gzip.BestCompression)
	z.Write(plain)
	z.Close()
	return asset{name: name, plain: plain, small: small.Bytes(), etag: fmt.Sprintf("%x", sha256.Sum256(plain))[:16]}
}

// ServeHTTP implements http.Handler.
func (a asset) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	guard(w.Header())
	w.Header().Set("Cache-Control", "no-cache") // asked for again each time: an upgrade is seen at once
	w.Header().Set("Vary", "Accept-Encoding")
	body, etag := a.plain, a.etag
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		body, etag = a.small, a.etag+"-gzip"
		w.Header().Set("Content-Encoding", "gzip")
	}
	w.Header().Set("Etag", `"`+etag+`"`)
	http.ServeContent(w, r, a.name, time.Time{}, bytes.NewReader(body))
}

// guard sets the headers that keep a browser from running or loading anything but this
// page's own files, were a name to slip through as more than text, and other sites from
// framing or reading it.
func guard(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}

package gate

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

const (
	// minToken is the length in bytes below which a token could be guessed.
	minToken = 16
	// maxToken bounds what is read of a file that may be the wrong one.
	maxToken = 4 << 10
)

// Token is a secret in a file. The file is read for each request that it is
// needed for, so that it can be replaced while the daemon runs.
type Token struct{ file string }

// OpenToken returns the token in a file, which must hold one now.
func OpenToken(file string) (*Token, error) {
	_, err := ReadToken(file)
	return &Token{file}, err
}

// ReadToken returns the one line that a file of a token has.
func ReadToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	token := bytes.TrimSpace(content)
	switch {
	case len(content) > maxToken, bytes.ContainsAny(token, " \t\r\n\x00"):
		return "", fmt.Errorf("%s is not a token on one line", file)
	case len(token) < minToken:
		return "", fmt.Errorf("the token in %s has less than %d characters; `openssl rand -hex 32` makes one", file, minToken)
	}
	return string(token), nil
}

// shown tells whether the request has the token.
func (t *Token) shown(r *http.Request) (bool, error) {
	want, err := ReadToken(t.file)
	if err != nil {
		return false, err
	}
	scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	// Sums are of one length, so that the comparison's time tells nothing.
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(a[:], b[:]) == 1, nil
}

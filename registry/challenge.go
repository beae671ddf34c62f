package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Challenge is a Bearer challenge of a WWW-Authenticate header, as the
// distribution project's token authentication specifies it.
type Challenge struct {
	Realm   string // URL of the token server
	Service string
	Scope   string
}

// challengeParam is name="value", or name=value where that is a token (RFC 9110, 11.2).
var challengeParam = regexp.MustCompile(`([a-zA-Z_]+)\s*=\s*(?:"([^"]*)"|([^\s",]+))`)

// ParseChallenge returns the first Bearer challenge among the values of a
// WWW-Authenticate header; ok is false when there is none.
func ParseChallenge(values []string) (c Challenge, ok bool) {
	for _, value := range values {
		scheme, params, _ := strings.Cut(strings.TrimSpace(value), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			continue
		}
		for _, m := range challengeParam.FindAllStringSubmatch(params, -1) {
			c.set(strings.ToLower(m[1]), m[2]+m[3])
		}
		return c, c.Realm != ""
	}
	return Challenge{}, false
}

// set keeps the first value of each: what follows may be another challenge's.
func (c *Challenge) set(key, value string) {
	switch key {
	case "realm":
		c.Realm = orDefault(c.Realm, value)
	case "service":
		c.Service = orDefault(c.Service, value)
	case "scope":
		c.Scope = orDefault(c.Scope, value)
	}
}

// Exchange asks the challenge's token server for a token. basic is an
// Authorization header for it, or empty for what anyone may have. insecure
// allows a token server without TLS. It returns the header that answers the
// challenge and how long it holds.
func (c Challenge) Exchange(ctx context.Context, client *http.Client, basic string, insecure bool) (authorization string, ttl time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	realm, err := c.realm(insecure)
	if err != nil {
		return "", 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return "", 0, fmt.Errorf("token server: %w", err)
	}
	req.Header.Set("User-Agent", userAgent)
	if basic != "" {
		req.Header.Set("Authorization", basic)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, fmt.Errorf("token server %s: %w", realm.Host, stripURL(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", 0, fmt.Errorf("token server %s answered %s", realm.Host, resp.Status)
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"` // seconds; the token spec's default is 60
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxErrorBody)).Decode(&answer); err != nil {
		return "", 0, fmt.Errorf("token server %s: %w", realm.Host, err)
	}
	token := orDefault(answer.Token, answer.AccessToken)
	if token == "" || len(token) > maxToken {
		return "", 0, fmt.Errorf("token server %s sent a token of %d bytes", realm.Host, len(token))
	}
	return "Bearer " + token, time.Duration(max(answer.ExpiresIn, 60)) * time.Second, nil
}

// realm checks the token server's URL. It comes from a registry, that is from
// a stranger, who must not make a daemon talk to addresses near to it.
func (c Challenge) realm(insecure bool) (*url.URL, error) {
	u, err := url.Parse(c.Realm)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !insecure) {
		return nil, fmt.Errorf("token server %q is no https URL", clip(c.Realm))
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && (ip.IsLinkLocalUnicast() || ip.IsLoopback() && !insecure) {
		return nil, fmt.Errorf("token server %q is an address of this host or link", clip(c.Realm))
	}
	query := u.Query()
	if c.Service != "" {
		query.Set("service", c.Service)
	}
	for scope := range strings.FieldsSeq(c.Scope) {
		query.Add("scope", scope)
	}
	u.RawQuery = query.Encode()
	return u, nil
}

// anonymousTokens answers Bearer challenges for pullers without credentials,
// with the token that the token server gives to anyone. Many registries ask
// for one even before public images, and an engine that pulls by
// mirror/HOST/REPO never sees that registry's own challenge.
type anonymousTokens struct {
	client func(registry string) *http.Client // for the registry's token server

	mu     sync.Mutex // guards tokens
	tokens map[Repository]anonymousToken
}

type anonymousToken struct {
	authorization string
	until         time.Time
}

const (
	// maxTokens bounds the repositories for which tokens are kept.
	maxTokens = 1024
	// maxToken bounds a token in bytes. Registries take no longer headers.
	maxToken = 16 << 10
)

func newAnonymousTokens(client func(registry string) *http.Client) *anonymousTokens {
	return &anonymousTokens{client: client, tokens: make(map[Repository]anonymousToken)}
}

// with sends a request without credentials, and once more with an anonymous
// token when the registry asks for one. When that does not help, the answer
// is the first challenge, which is the puller's to answer.
func (a *anonymousTokens) with(ctx context.Context, repo Repository, insecure bool, send func(authorization string) (*http.Response, error)) (*http.Response, error) {
	resp, err := send(a.get(repo))
	if !Unauthorized(err) || repo.Name == "" {
		return resp, err
	}
	challenge, ok := ParseChallenge(err.(*Error).Header.Values("Www-Authenticate"))
	if !ok {
		return nil, err
	}
	if challenge.Scope == "" { // engines then ask for what they want, too
		challenge.Scope = "repository:" + repo.Name + ":pull"
	}
	authorization, ttl, tokenErr := challenge.Exchange(ctx, a.client(repo.Host), "", insecure)
	if tokenErr != nil {
		return nil, err
	}
	resp, retryErr := send(authorization)
	if Refused(retryErr) {
		return nil, err // some registries say 403 or 404 here for what is private
	}
	if retryErr == nil {
		a.put(repo, authorization, ttl)
	}
	return resp, retryErr
}

func (a *anonymousTokens) get(repo Repository) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.tokens[repo]; time.Now().Before(t.until) {
		return t.authorization
	}
	return ""
}

func (a *anonymousTokens) put(repo Repository, authorization string, ttl time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tokens) >= maxTokens {
		clear(a.tokens)
	}
	// Ended a little early: the token must hold until it is read.
	a.tokens[repo] = anonymousToken{authorization, time.Now().Add(ttl - ttl/10)}
}

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/murderp2p/murder/registry"
)

// credentials answers the challenges of registries with the user's own credentials, those of `docker login` and `podman login`, as an
// engine would. One answer serves every host that asks the same, so a fleet of any size costs a token server one question.
type credentials struct {
	keychain authn.Keychain
	insecure []string // registries whose token servers may be given credentials without TLS
	strict   bool     // no others may, be they on this machine or in this network
	http     *http.Client

	mu      sync.Mutex         // guards answers, not what it points at
	answers map[string]*answer // by repository and challenge
}

// maxAnswers bounds those that are remembered: strangers tell a seeder of pushes to repositories that they make up.
const maxAnswers = 1024

// answer is the Authorization for one challenge.
type answer struct {
	turn   chan struct{} // holds one token, for whoever may look at header or fetch it anew; the others wait for that one
	header string        // "" until there is one
}

// newCredentials looks them up where Docker and podman keep them, each time anew.
func newCredentials(insecure []string) *credentials {
	return &credentials{
		keychain: authn.DefaultKeychain,
		insecure: insecure,
		http:     &http.Client{Timeout: 30 * time.Second, CheckRedirect: noDowngrade},
		answers:  make(map[string]*answer),
	}
}

// noDowngrade keeps credentials from being led out of TLS.
func noDowngrade(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("too many redirects")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("the token server redirects from https to http")
	}
	return nil
}

// authorization is the Authorization header with which to answer challenge, the WWW-Authenticate of the registry of img. refused is the
// one that has just been refused, or "": a token that has expired is replaced. The error says what the user can do.
func (k *credentials) authorization(ctx context.Context, img image, challenge, refused string) (string, error) {
	a := k.answer(img.ref.Context().Name() + "\n" + challenge)
	select {
	case <-a.turn:
		defer func() { a.turn <- struct{}{} }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if a.header != "" && a.header != refused {
		return a.header, nil
	}
	header, err := k.ask(ctx, img, challenge)
	if err != nil {
		return "", err
	}
	if header == refused && strings.HasPrefix(header, "Basic ") {
		return "", fmt.Errorf("%s refuses the credentials of `docker login %s`", img.registry(), img.registry())
	}
	a.header = header
	return header, nil
}

func (k *credentials) answer(key string) *answer {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.answers[key]
	if a == nil {
		if len(k.answers) >= maxAnswers {
			clear(k.answers) // whoever has one in hand keeps it
		}
		a = &answer{turn: make(chan struct{}, 1)}
		a.turn <- struct{}{}
		k.answers[key] = a
	}
	return a
}

// ask makes the header from the user's credentials, by way of the token server where the challenge says so.
func (k *credentials) ask(ctx context.Context, img image, challenge string) (string, error) {
	cfg, err := k.lookUp(ctx, img)
	if err != nil {
		return "", fmt.Errorf("credentials for %s: %w", img.registry(), err)
	}
	bearer, isBearer := registry.ParseChallenge([]string{challenge})
	scheme, _, _ := strings.Cut(challenge, " ")
	switch {
	case isBearer && cfg.RegistryToken != "":
		return "Bearer " + cfg.RegistryToken, nil
	case isBearer:
		header, err := k.exchange(ctx, img, cfg, bearer)
		if err != nil {
			return "", fmt.Errorf("token for %s: %w", img.registry(), err)
		}
		return header, nil
	case !strings.EqualFold(scheme, "Basic"):
		return "", fmt.Errorf("%s wants an authentication that is neither Basic nor Bearer: %q", img.registry(), challenge)
	case cfg.Username == "":
		return "", fmt.Errorf("%s wants credentials: `docker login %s` on this machine", img.registry(), img.registry())
	default:
		return basic(cfg), nil
	}
}

// lookUp finds the user's credentials for the registry of img; without any the result is empty.
func (k *credentials) lookUp(ctx context.Context, img image) (*authn.AuthConfig, error) {
	auth, err := authn.Resolve(ctx, k.keychain, img.ref.Context())
	if err != nil {
		return nil, err
	}
	return authn.Authorization(ctx, auth)
}

// basic is the Authorization header of a user name and password, or "" without.
func basic(cfg *authn.AuthConfig) string {
	if cfg.Username == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password))
}

// exchange asks the token server for a token to pull img: anonymously when the user has no credentials, as engines do for public images.
func (k *credentials) exchange(ctx context.Context, img image, cfg *authn.AuthConfig, c registry.Challenge) (string, error) {
	if c.Scope == "" {
		c.Scope = img.ref.Context().Scope("pull")
	}
	// The challenge has come through the mirror, without TLS. It must not talk the user's secrets into the clear.
	plain := cfg.Username+cfg.IdentityToken == "" || !k.strict && img.ref.Context().Scheme() == "http" || slices.Contains(k.insecure, img.registry())
	if cfg.IdentityToken != "" {
		return k.refresh(ctx, cfg.IdentityToken, c, plain)
	}
	header, _, err := c.Exchange(ctx, k.http, basic(cfg), plain)
	return header, err
}

// refresh asks with what `docker login` keeps for some registries instead of a password, such as Azure's: a refresh token.
// https://distribution.github.io/distribution/spec/auth/oauth/
func (k *credentials) refresh(ctx context.Context, token string, c registry.Challenge, plain bool) (string, error) {
	realm, err := url.Parse(c.Realm)
	if err != nil || realm.Scheme != "https" && !(plain && realm.Scheme == "http") {
		return "", fmt.Errorf("token server %q is no https URL", c.Realm)
	}
	form := url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {token}, "client_id": {"murder"},
		"service": {c.Service}, "scope": {c.Scope},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.Realm, strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := k.http.Do(req)
	if err != nil {
		return "", withoutURL(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("token server %s %w", realm.Host, answerErrorOf(resp))
	}
	var body struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&body); err != nil || body.AccessToken == "" {
		return "", fmt.Errorf("token server %s sent no token", realm.Host)
	}
	return "Bearer " + body.AccessToken, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/gate"
	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder"
	"github.com/murderp2p/murder/seeder/pushes"
)

// leastInterval keeps a mistake from being a load for a registry.
const leastInterval = 5 * time.Second

// pushFlags are for a seeder that is to fetch what is pushed before it is pulled.
func pushFlags() []cli.Flag {
	return []cli.Flag{
		textOf("events-token-file", "", "`FILE` with the token that registries must show which tell of pushes at /v1/events (default: none, and all are heard)", nil),
		listOf("watch", "`REPO[:TAG-GLOB]` whose tags are looked at for pushes, at a registry that tells of none (repeatable)", checkWatch),
		typed("watch-interval", "1m", "`DURATION` between two looks at a --watch", func(s string) (time.Duration, error) {
			d, err := time.ParseDuration(s)
			if err != nil || d < leastInterval {
				return 0, fmt.Errorf("it is a duration of %v at the least, written as 30s, 5m or 1h30m", leastInterval)
			}
			return d, nil
		}),
		listOf("seeders", "`URL` of all seeders, this one too, word for word as mirrors have it in --seeder (repeatable), where all are told of pushes or watch: each fetches its share (default: this one fetches all)", checkSeeder),
		listOf("warm-fleet", "`GLOB` of images HOST/REPOSITORY:TAG that all mirrors are told to fetch when they have been pushed, * standing for any characters but / (repeatable)", checkGlob),
		listOf("warm-platform", "`OS/ARCH` of which pushed images are fetched (repeatable; default: all)", checkPlatform),
	}
}

// warmPlatforms are those of --warm-platform; none is all.
func warmPlatforms(c *cli.Context) (platforms []v1.Platform, err error) {
	for _, text := range listFlag(c, "warm-platform") {
		if text == "all" {
			return nil, nil
		}
		p, err := v1.ParsePlatform(text)
		if err != nil {
			return nil, fmt.Errorf("--warm-platform %q: %w", text, err)
		}
		platforms = append(platforms, *p)
	}
	return platforms, nil
}

func checkGlob(s string) error {
	if _, err := path.Match(s, ""); err != nil {
		return err
	}
	host, rest, _ := strings.Cut(s, "/")
	if !strings.ContainsAny(host, ".:*?[") && host != "localhost" || !strings.ContainsAny(rest, ":*?[") {
		return errors.New("it is for names with registry and tag, such as reg.example/team/app:v1 or docker.io/library/debian:12")
	}
	return nil
}

func checkWatch(s string) error {
	_, err := pushes.ParsePattern(s, "docker.io")
	return err
}

// watches are the patterns of --watch. Their registries may be asked as if --allow-registry named them.
func (d *daemon) watches() (patterns []pushes.Pattern, err error) {
	for _, text := range listFlag(d.cli, "watch") {
		p, err := pushes.ParsePattern(text, d.cli.String("default-registry"))
		if err != nil {
			return nil, fmt.Errorf("--watch %q: %w", text, err)
		}
		patterns = append(patterns, p)
	}
	return patterns, nil
}

// eventsToken is that of --events-token-file; nil without.
func eventsToken(c *cli.Context) (*gate.Token, error) {
	file := c.String("events-token-file")
	if file == "" {
		return nil, nil
	}
	token, err := gate.OpenToken(file)
	if err != nil {
		return nil, fmt.Errorf("--events-token-file: %w", err)
	}
	return token, nil
}

// errNoLogin: what anybody may have has been asked for already.
var errNoLogin = errors.New("the seeder has no credentials for the registry in its Docker config.json")

// selfFrom answers registries with the credentials that the seeder's user has in a Docker config.json. Those that it has
// none for are told nothing: they may have been named by a stranger, and so may the token server.
func selfFrom(k *credentials) seeder.Self {
	k.strict = true
	return func(ctx context.Context, repo registry.Repository, challenge, refused string) (string, error) {
		img, err := parseImage(repo.String() + ":any")
		if err != nil {
			return "", err
		}
		if img.registry() != repo.Host || img.repository() != repo.Name {
			return "", errNoLogin // a name that Docker's files know as another's
		}
		cfg, err := k.lookUp(ctx, img)
		if err != nil {
			return "", fmt.Errorf("credentials for %s: %w", repo.Host, err)
		}
		if cfg.Username+cfg.IdentityToken+cfg.RegistryToken == "" {
			return "", errNoLogin
		}
		return k.authorization(ctx, img, challenge, refused)
	}
}

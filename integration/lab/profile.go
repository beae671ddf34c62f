package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Daemons built with the tag labprofile profile themselves from one signal to
// the next; see cmd/murder/profile.go.

// profiled returns args so that the program knows where its profile goes.
func (l *lab) profiled(name string, args []string) []string {
	if l.profile == "" {
		return args
	}
	return append([]string{"env", "LAB_PROFILE=" + l.profileOf(name)}, args...)
}

func (l *lab) profileOf(name string) string { return filepath.Join(l.profile, name) }

// profileBegin has the daemons of a stage begin their profiles, if asked for.
func (s *stage) profileBegin() error {
	if s.lab.profile == "" {
		return nil
	}
	if err := os.MkdirAll(s.lab.profile, 0o755); err != nil {
		return err
	}
	return s.eachDaemon(func(p *process) error {
		err := os.Remove(s.lab.profileOf(p.name) + ".heap")
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return errors.Join(err, p.cmd.Process.Signal(syscall.SIGUSR1))
	})
}

// profileEnd returns when the profiles are written.
func (s *stage) profileEnd(ctx context.Context) error {
	if s.lab.profile == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	return s.eachDaemon(func(p *process) error {
		if err := p.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			return err
		}
		for {
			if _, err := os.Stat(s.lab.profileOf(p.name) + ".heap"); err == nil {
				return nil
			}
			if err := sleep(ctx, 50*time.Millisecond); err != nil {
				return fmt.Errorf("%s wrote no profile; was it built with the tag labprofile? %w", p.name, err)
			}
		}
	})
}

func (s *stage) eachDaemon(do func(p *process) error) error {
	for _, role := range []string{roleSeeder, roleHosts} {
		for _, p := range s.running[role] {
			if err := do(p); err != nil {
				return err
			}
		}
	}
	return nil
}

package main

import "testing"

// A glob that no image's full name can match is a mistake, and not an order that never comes.
func TestGlobsOfTheFleet(t *testing.T) {
	for _, glob := range []string{
		"reg.example/team/app:v1", "reg.example:5000/app:v*", "docker.io/library/debian:*", "localhost/app:1", "*/team/app:v?", "[r]eg.example/team/*",
	} {
		if err := checkGlob(glob); err != nil {
			t.Errorf("%q: %v", glob, err)
		}
	}
	for _, glob := range []string{"", "debian:12", "library/debian:12", "team/app:v*", "reg.example/team/app", "reg.example:5000/app", "reg.example", "reg.example/app:v["} {
		if checkGlob(glob) == nil {
			t.Errorf("%q is taken", glob)
		}
	}
}

// Package registry speaks the OCI distribution protocol and nothing else: it
// parses pull requests, serves answers in the protocol's form, asks upstream
// registries on a puller's behalf, and remembers whom they admitted.
//
// It knows neither swarms nor files. The two daemons, packages proxy and
// seeder, give a [Handler] their blobs through the [Backend] interface and
// ask registries (or each other, the pull API is the same) with a [Client].
//
// Two rules hold throughout, and all else follows from them: a puller's
// Authorization goes to the registry it was meant for and nowhere else, and
// what the registry answers to it (its 401 with the challenge, its 404) is
// the answer that the puller gets.
package registry

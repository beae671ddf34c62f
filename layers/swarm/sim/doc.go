// Package sim is a simulator of a swarm, and has tests only. It drives the real
// choosing code, [github.com/murderp2p/murder/layers/swarm/choice] and the
// tracker's handout, over virtual time, for fleets and blobs that no laboratory
// holds. Given the same seed it does the same.
package sim

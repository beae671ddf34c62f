// Package choice decides who gets what from whom in one blob's swarm, and does
// nothing else: no connection, no clock, no goroutine. The engine tells it what
// happened and when; it answers with what to do. A simulator drives the same
// code over virtual time for fleets larger than any laboratory.
//
// The problem: one source holds a blob of M pieces, N hosts want it, all links
// carry the same rate. Nobody can be faster than the blob takes over one link,
// and the last piece to leave the source must still reach N hosts, which takes
// log2 N times the time of one piece. So the best there is is
// (1 + log2(N)/M) times size over rate. Three things keep a swarm from it, and
// each has its answer here:
//
//   - The source's link is the scarce thing: while it sends a second copy of
//     one piece, another piece does not exist in the swarm at all. [Seed]
//     therefore tells each host only of the few pieces it is to fetch, a
//     different one each time, so that every piece leaves once before any
//     leaves twice (super-seeding, BEP 16).
//   - Hosts that all fetch the same piece have nothing to give each other.
//     [Leech] asks for the rarest piece first and breaks ties at random.
//   - Each hop delays a piece by the requests queued in front of it. Leech
//     keeps as little asked as keeps the link busy ([Pipeline]), and asks whole
//     pieces of one peer, for only a whole piece can be passed on.
//
// As only pieces that left the source exist, and they leave in the order of the
// blob, a host that fetches the rarest has the blob nearly in order anyway; a
// small window where its reader stands makes up the rest. Where no piece is rare,
// pieces are fetched in the reader's order.
//
// [Line] says whose turn it is where many have asked for something.
//
// Nothing here is safe for concurrent use. Time is given as a time.Duration
// since any fixed start and must not run backwards.
package choice

// Package bulk writes chunks to sockets: from the file without a copy where a connection
// is fast, in short packets where it is slow.
//
// A queue that all connections of a host share, as that of its card often is, gives each
// as much of the link as it has bytes in the queue. Linux lets a connection have two
// packets there, whatever the rate, and how long these are follows from the least round
// trip that the connection has seen: 64 KiB where that was under half a millisecond, as
// for one that began while the link was idle, and two segments for one that began while
// the queue was full. So the first ones get twenty times what the others get, until they
// end, and a host that joins a busy swarm gets next to nothing from it.
//
// A packet does not grow past a byte that was sent with MSG_EOR (sendmsg(2)), which
// sendfile(2) cannot set. Shorter packets cost more CPU, and fast connections do not wait
// for each other for long, so they keep theirs.
package bulk

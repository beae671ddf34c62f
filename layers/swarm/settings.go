package swarm

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/mse"
	"github.com/anacrolix/torrent/peer_protocol"
	"github.com/anacrolix/torrent/types/infohash"
	"golang.org/x/time/rate"

	"github.com/murderp2p/murder/layers"
)

const (
	// chunkSize is what one request asks for. The library's 16 KiB cost a third
	// more CPU per byte at both ends. 128 KiB would save a little more, but some
	// clients, aria2 among them, close a connection that asks for above 64 KiB.
	chunkSize = 64 << 10

	// minRequests and maxRequests bound the requests outstanding on a connection,
	// which are otherwise those of one piece: more, and the pieces of a connection
	// all finish together and late (the library serves requests in random order);
	// less than four, and the link idles between them.
	minRequests = 4
	maxRequests = 64

	// wakeWriters is how often a connection's writer looks for work unasked. The
	// library forgets to wake it when the work comes between its last look and its
	// falling asleep; with no more requests outstanding than one piece has, nothing
	// else wakes it then, and a transfer stood still for the minute until the next
	// keep-alive (one in ten of 512 MiB on a busy machine). So keep-alives are due
	// this often, and conn does not send them.
	wakeWriters = 50 * time.Millisecond

	// peerIDPrefix names the client in the way of BEP 20.
	peerIDPrefix = "-MD0001-"
)

// settings configures the library.
func (c *Client) settings() *torrent.ClientConfig {
	s := torrent.NewDefaultClientConfig()

	// One data centre, TCP, peers from our own tracker: nothing else is needed,
	// and all else is a way in or out that nobody would expect.
	s.DisableUTP = true
	s.NoDHT = true
	s.DisablePEX = true
	s.DisableTrackers = true // announcer does it; the library announces at most once a minute
	s.DisableWebtorrent = true
	s.DisableWebseeds = true
	s.NoDefaultPortForwarding = true
	s.DisableTCP = true // in favour of our own listener and dialer

	s.Seed = true                      // or it stops sending 100 KiB beyond what it received
	s.DropDuplicatePeerIds = true      // two hosts that dial each other need one connection
	s.DropMutuallyCompletePeers = true // nothing left to exchange
	s.DisableAcceptRateLimiting = true // it counts by IP, and hosts may share one
	s.AlwaysWantConns = true           // a handshake may name a swarm that is to be taken up; see wake
	s.KeepAliveTimeout = wakeWriters
	s.MaxUnverifiedBytes = 0                    // 64 MiB would cut the search for the rarest pieces short
	s.DialRateLimiter = unlimited()             // 10 a second for all swarms together delays every start
	s.HeaderObfuscationPolicy.Preferred = false // RC4 costs three times the CPU; taken when asked for
	s.CryptoSelector = preferPlaintext
	s.Callbacks.ReceiveEncryptedHandshakeSkeys = c.eachInfoHash
	s.UploadRateLimiter = cmp.Or(c.cfg.Upload, unlimited())
	s.DownloadRateLimiter = c.cfg.Download // nil spares every read the limiter's lock

	s.Slogger = slog.New(atLeast{slog.LevelWarn, c.log.Handler()})
	s.Bep20 = peerIDPrefix
	s.ExtendedHandshakeClientVersion = c.self().String()
	s.DefaultStorage = noStorage{} // every torrent brings its own; the default would open a database

	s.Callbacks.CompletedHandshake = func(_ *torrent.PeerConn, ih infohash.T) {
		c.wake(layers.InfoHash(ih))
	}
	s.Callbacks.PeerConnAdded = append(s.Callbacks.PeerConnAdded, func(pc *torrent.PeerConn) {
		pc.PeerMaxRequests = requests(pc.Torrent())
		c.peers.add(pc)
	})
	s.Callbacks.ReadExtendedHandshake = func(pc *torrent.PeerConn, m *peer_protocol.ExtendedHandshakeMessage) {
		m.Reqq = min(cmp.Or(max(m.Reqq, 0), maxRequests), requests(pc.Torrent())) // taken over after this
		c.peers.greeted(pc, m.V, m.Port)
	}
	s.Callbacks.PeerConnClosed = c.peers.closed
	s.Callbacks.ReceivedUsefulData = append(s.Callbacks.ReceivedUsefulData, func(e torrent.ReceivedUsefulDataEvent) {
		if pc, ok := e.Peer.TryAsPeerConn(); ok {
			c.peers.received(pc, len(e.Message.Piece))
		}
	})
	return s
}

// requests is how many chunks of t to have outstanding on a connection.
func requests(t *torrent.Torrent) int {
	return int(min(max(t.Info().PieceLength/chunkSize, minRequests), maxRequests))
}

func unlimited() *rate.Limiter { return rate.NewLimiter(rate.Inf, 0) }

// preferPlaintext takes the cheapest of what an encrypting client offers.
func preferPlaintext(offered mse.CryptoMethod) mse.CryptoMethod {
	if offered&mse.CryptoMethodPlaintext != 0 {
		return mse.CryptoMethodPlaintext
	}
	return mse.DefaultCryptoSelector(offered)
}

// atLeast is a handler that leaves out what lies below a level.
type atLeast struct {
	level slog.Level
	slog.Handler
}

func (h atLeast) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.level && h.Handler.Enabled(ctx, level)
}

func (h atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeast{h.level, h.Handler.WithAttrs(attrs)}
}

func (h atLeast) WithGroup(name string) slog.Handler {
	return atLeast{h.level, h.Handler.WithGroup(name)}
}

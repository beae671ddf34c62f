// Library is a host, or the seeder, of a swarm on the client of
// anacrolix/torrent as it comes, with settings for a data centre and no
// scheduling of our own: what murder would be without an engine of its own.
// The lab runs it beside murder.
//
// It takes commands on stdin, a word a line, and answers on stdout, a JSON
// object a line. When it listens it says {"Event":"ready"}. To "go" it begins
// to fetch, and says {"Event":"done"} once all pieces have been verified; to
// "stats" it says what it has moved. It ends with its input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"
	"golang.org/x/time/rate"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "library:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	torrent, dir string
	listen       netip.AddrPort
	peers        []torrent.PeerInfo
}

func parseOptions() (o options, err error) {
	flag.StringVar(&o.torrent, "torrent", "", "torrent `file`")
	flag.StringVar(&o.dir, "dir", "", "`folder` of the data; the seeder's has all of it")
	flag.TextVar(&o.listen, "listen", netip.AddrPort{}, "`address` for peers")
	flag.Func("peers", "`addresses` of all others, with commas", func(list string) error {
		for _, text := range strings.Split(list, ",") {
			addr, err := netip.ParseAddrPort(text)
			if err != nil {
				return err
			}
			o.peers = append(o.peers, torrent.PeerInfo{Addr: net.TCPAddrFromAddrPort(addr), Trusted: true})
		}
		return nil
	})
	flag.Parse()
	return o, nil
}

// settings are the library's defaults, without what a data centre has no use
// for and without what is known to slow it down there.
func settings(o options) *torrent.ClientConfig {
	s := torrent.NewDefaultClientConfig()
	s.DisableUTP, s.NoDHT, s.DisablePEX, s.DisableTrackers = true, true, true, true
	s.DisableWebtorrent, s.DisableWebseeds, s.NoDefaultPortForwarding, s.DisableIPv6 = true, true, true, true
	s.SetListenAddr(o.listen.String())
	s.Seed = true                                    // or it stops sending 100 KiB beyond what it received
	s.DropDuplicatePeerIds = true                    // two hosts that dial each other need one connection
	s.MaxUnverifiedBytes = 0                         // 64 MiB would cut the search for the rarest pieces short
	s.DialRateLimiter = rate.NewLimiter(rate.Inf, 0) // 10 a second delays the start
	s.HeaderObfuscationPolicy.Preferred = false      // RC4 is dear
	s.Slogger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s.DefaultStorage = storage.NewFileOpts(storage.NewFileClientOpts{ClientBaseDir: o.dir, PieceCompletion: storage.NewMapPieceCompletion()})
	return s
}

func run() error {
	o, err := parseOptions()
	if err != nil {
		return err
	}
	info, err := metainfo.LoadFromFile(o.torrent)
	if err != nil {
		return err
	}
	client, err := torrent.NewClient(settings(o))
	if err != nil {
		return err
	}
	defer client.Close()
	spec, err := torrent.TorrentSpecFromMetaInfoErr(info)
	if err != nil {
		return err
	}
	spec.ChunkSize = chunkSize
	t, _, err := client.AddTorrentSpec(spec)
	if err != nil {
		return err
	}
	if err := t.VerifyDataContext(context.Background()); err != nil {
		return err
	}
	return obey(t, o.peers)
}

// chunkSize is what one request asks for, in bytes: a whole piece. The
// protocol's 16 KiB cost half as much CPU again, and took a quarter longer.
const chunkSize = 64 << 10

// event is a line of output.
type event struct {
	Event          string
	Seconds        float64 // since "go"
	Sent, Received int64   // bytes of content
}

// obey does as stdin says until it ends.
func obey(t *torrent.Torrent, peers []torrent.PeerInfo) error {
	events := make(chan event)
	go func() { // for as long as the program
		out := json.NewEncoder(os.Stdout)
		for e := range events {
			_ = out.Encode(e) // nobody reads: stdin ends too
		}
	}()
	events <- event{Event: "ready"}
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		switch commands.Text() {
		case "go":
			start := time.Now()
			t.AddPeers(peers)
			t.DownloadAll()
			go func() {
				<-t.Complete().On()
				events <- event{Event: "done", Seconds: time.Since(start).Seconds()}
			}()
		case "stats":
			s := t.Stats()
			events <- event{Event: "stats", Sent: s.BytesWrittenData.Int64(), Received: s.BytesReadUsefulData.Int64()}
		default:
			return fmt.Errorf("unknown command %q", commands.Text())
		}
	}
	return commands.Err()
}

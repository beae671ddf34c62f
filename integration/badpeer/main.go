// Badpeer is a BitTorrent client that says it has everything and has nothing:
// it answers each request with zeros, at full speed, or, with -silent, never.
// It is on the client of anacrolix/torrent, so that all but the bytes is as any
// client's. The chaos suite runs it beside a fleet.
//
// It prints "asked" when it is first asked for bytes, and ends by a signal.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "badpeer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var listen netip.AddrPort
	flag.TextVar(&listen, "listen", netip.AddrPort{}, "`address` for peers")
	tracker := flag.String("tracker", "", "`URL` to announce to")
	silent := flag.Bool("silent", false, "never answer a request")
	flag.Parse() // the rest are torrent files
	content := &nothing{asked: sync.OnceFunc(func() { fmt.Println("asked") })}
	if *silent {
		content.until = ctx
	}
	client, err := torrent.NewClient(settings(listen, content))
	if err != nil {
		return err
	}
	for _, file := range flag.Args() {
		info, err := metainfo.LoadFromFile(file)
		if err != nil {
			return err
		}
		info.Announce, info.AnnounceList = *tracker, nil
		if _, err := client.AddTorrent(info); err != nil {
			return err
		}
	}
	<-ctx.Done() // what is left of the client ends with the program
	return nil
}

func settings(listen netip.AddrPort, content storage.ClientImpl) *torrent.ClientConfig {
	s := torrent.NewDefaultClientConfig()
	s.DisableUTP, s.NoDHT, s.DisablePEX = true, true, true
	s.DisableWebtorrent, s.DisableWebseeds, s.NoDefaultPortForwarding, s.DisableIPv6 = true, true, true, true
	s.SetListenAddr(listen.String())
	s.Seed = true
	s.HeaderObfuscationPolicy.Preferred = false
	s.Slogger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s.DefaultStorage = content
	return s
}

// nothing is storage that claims to be complete.
type nothing struct {
	asked func()
	until context.Context // reads wait for its end; nil: they bring zeros
}

func (n *nothing) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(metainfo.Piece) storage.PieceImpl { return nothingPiece{n} },
		Close: func() error { return nil },
	}, nil
}

type nothingPiece struct{ *nothing }

func (p nothingPiece) ReadAt(b []byte, _ int64) (int, error) {
	p.asked()
	if p.until != nil {
		<-p.until.Done()
	}
	clear(b)
	return len(b), nil
}
func (nothingPiece) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (nothingPiece) MarkComplete() error                    { return nil }
func (nothingPiece) MarkNotComplete() error                 { return nil }
func (nothingPiece) Completion() storage.Completion {
	return storage.Completion{Ok: true, Complete: true}
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/murderp2p/murder/integration/netlab"
)

// block makes two machines unreachable for each other: connecting fails at once.
func block(a, b *netlab.Machine) error {
	return errors.Join(
		a.IP(fmt.Sprintf("route add unreachable %s", b.Addr)),
		b.IP(fmt.Sprintf("route add unreachable %s", a.Addr)))
}

// blockPeers keeps two machines from connecting to each other's BitTorrent
// ports; all other ports can be reached.
func blockPeers(a, b *netlab.Machine) error {
	rules := func(from, to *netlab.Machine) error {
		rule := "rule add to %s ipproto tcp dport %d unreachable"
		return from.IP(fmt.Sprintf(rule, to.Addr, seederPeerPort), fmt.Sprintf(rule, to.Addr, mirrorPeerPort))
	}
	return errors.Join(rules(a, b), rules(b, a))
}

// traffic is what a card has seen, in bytes, and what the machine's TCP did. A
// card counts the headers of a burst that it is handed at once only once, so
// the bytes are hardly more than the content, and less than the cable carries.
type traffic struct {
	Sent, Received        int64 // bytes
	Segments, Retransmits int64 // of TCP, sent
}

func (t traffic) minus(u traffic) traffic {
	return traffic{t.Sent - u.Sent, t.Received - u.Received, t.Segments - u.Segments, t.Retransmits - u.Retransmits}
}

func (t traffic) plus(u traffic) traffic {
	return traffic{t.Sent + u.Sent, t.Received + u.Received, t.Segments + u.Segments, t.Retransmits + u.Retransmits}
}

// readTraffic reads the counters of a machine.
func readTraffic(m *netlab.Machine) (t traffic, err error) {
	err = m.Do(func() error {
		t, err = readCard("eth0")
		if err == nil {
			t.Segments, t.Retransmits, err = readTCP()
		}
		return err
	})
	return t, err
}

// readCrossing is what zone 0 sent (Sent) and received over the cable between zones.
func readCrossing(w *netlab.Network) (t traffic, err error) {
	err = w.Hub.Do(func() error {
		t, err = readCard("cable0")
		return err
	})
	return t, err
}

// readCard reads /proc/net/dev of the namespace that this thread is in.
func readCard(card string) (t traffic, err error) {
	fields, err := findLine("/proc/thread-self/net/dev", card+":", 1)
	if err != nil {
		return t, err
	}
	if len(fields) < 10 {
		return t, fmt.Errorf("/proc/net/dev: %q", fields)
	}
	t.Received, err = strconv.ParseInt(fields[1], 10, 64)
	if err == nil {
		t.Sent, err = strconv.ParseInt(fields[9], 10, 64)
	}
	return t, err
}

// readTCP reads the TCP line of /proc/net/snmp, whose columns RFC 1213 names:
// tcpOutSegs, which leaves retransmitted ones out, and tcpRetransSegs.
func readTCP() (sent, again int64, err error) {
	fields, err := findLine("/proc/thread-self/net/snmp", "Tcp:", 2)
	if err != nil {
		return 0, 0, err
	}
	if len(fields) < 13 {
		return 0, 0, fmt.Errorf("/proc/net/snmp: %q", fields)
	}
	sent, err = strconv.ParseInt(fields[11], 10, 64)
	if err == nil {
		again, err = strconv.ParseInt(fields[12], 10, 64)
	}
	return sent, again, err
}

// findLine returns the words of the nth line of file that begins with first.
func findLine(file, first string, nth int) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 0 && fields[0] == first {
			if nth--; nth == 0 {
				return fields, nil
			}
		}
	}
	return nil, errors.Join(lines.Err(), fmt.Errorf("%s: no line %q", file, first))
}

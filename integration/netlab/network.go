package netlab

import (
	"errors"
	"fmt"
	"net/netip"
)

// Network is a switch and the machines that are plugged into it. The switch
// is a namespace with one bridge for each zone; where there are two, a cable
// joins them.
type Network struct {
	Hub      *Namespace // the switch
	Machines []*Machine // in the order in which they were plugged in
}

// Machine is a namespace with one network card, eth0.
type Machine struct {
	*Namespace
	Addr netip.Addr
	hub  *Namespace
	port string // the other end of its cable, in the hub
	zone int
}

// NewNetwork makes a switch with one or two zones.
func NewNetwork(zones int) (*Network, error) {
	hub, err := NewNamespace()
	if err != nil {
		return nil, err
	}
	w := &Network{Hub: hub}
	for z := range zones {
		if err := hub.IP(fmt.Sprintf("link add zone%d type bridge", z), fmt.Sprintf("link set zone%d up", z)); err != nil {
			w.Close()
			return nil, err
		}
	}
	if zones == 2 {
		err = hub.IP("link add cable0 type veth peer name cable1",
			"link set cable0 master zone0 up", "link set cable1 master zone1 up")
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, hub.tune() // now that there is a bridge, its settings are there
}

// Close lets go of the namespaces. They end with the last process in each.
func (w *Network) Close() {
	for _, m := range w.Machines {
		m.Close()
	}
	w.Hub.Close()
}

// Plug adds a machine to a zone. Addresses are of [Subnet].
func (w *Network) Plug(addr netip.Addr, zone int) (*Machine, error) {
	n, err := NewNamespace()
	if err != nil {
		return nil, err
	}
	m := &Machine{Namespace: n, Addr: addr, hub: w.Hub, port: fmt.Sprintf("port%d", len(w.Machines)), zone: zone}
	w.Machines = append(w.Machines, m)
	if err := w.Hub.IP(fmt.Sprintf("link add %s type veth peer name eth0 netns %s", m.port, n.path())); err != nil {
		return nil, err
	}
	if err := m.Mend(); err != nil {
		return nil, err
	}
	return m, n.IP(fmt.Sprintf("addr add %s/%d dev eth0", addr, Subnet.Bits()), "link set eth0 up",
		fmt.Sprintf("route change %s dev eth0 proto kernel scope link src %s congctl %s", Subnet, addr, Congestion))
}

// Subnet has all machines. It need not be free on this machine: no card of a
// network leads out of it.
var Subnet = netip.MustParsePrefix("10.77.0.0/16")

// Congestion is Linux's default congestion control. It is set by route: where
// the machine's own default is another, a namespace may not change it.
const Congestion = "cubic"

// Cut has the switch forget the machine's cable: what goes in at one end comes
// out nowhere, and nobody is told.
func (m *Machine) Cut() error {
	return m.hub.IP(fmt.Sprintf("link set %s nomaster", m.port))
}

// Mend undoes Cut.
func (m *Machine) Mend() error {
	return m.hub.IP(fmt.Sprintf("link set %s master zone%d up", m.port, m.zone))
}

// Part cuts two zones off from each other, as Cut does with a machine.
func (w *Network) Part() error { return w.Hub.IP("link set cable0 nomaster") }

// Join undoes Part.
func (w *Network) Join() error { return w.Hub.IP("link set cable0 master zone0") }

// Link is the rate of a cable in bits a second. Zero is unlimited.
type Link struct {
	Up, Down int64
}

// QueueTime bounds the queue in front of each cable, as a switch's memory
// bounds that of a port: what comes when it is full is dropped.
const QueueTime = 80 // milliseconds of the cable's rate

// Shape limits what goes through the machine's cable: what it sends by its
// card, what it receives at the switch.
func (m *Machine) Shape(l Link) error {
	if err := limit(m.Namespace, "eth0", l.Up); err != nil {
		return err
	}
	return limit(m.hub, m.port, l.Down)
}

// ShapeCable limits what zones send each other, each way.
func (w *Network) ShapeCable(rate int64) error {
	return errors.Join(limit(w.Hub, "cable0", rate), limit(w.Hub, "cable1", rate))
}

// limit bounds what leaves by a card to rate bits a second. A burst of 2 ms
// spares the timers; the queue is a plain first in, first out.
func limit(n *Namespace, card string, rate int64) error {
	if rate == 0 {
		return nil
	}
	bytes := rate / 8
	return n.TC(
		fmt.Sprintf("qdisc add dev %s root handle 1: htb default 1", card),
		fmt.Sprintf("class add dev %s parent 1: classid 1:1 htb rate %dbit ceil %[2]dbit burst %d cburst %[3]d quantum 60000", card, rate, max(bytes/500, 3200)),
		fmt.Sprintf("qdisc add dev %s parent 1:1 handle 10: bfifo limit %d", card, max(bytes*QueueTime/1000, 64<<10)))
}

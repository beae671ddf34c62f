package roster

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// srvPrefix is before the scheme of a name that is looked up as SRV records.
const srvPrefix = "srv+"

// Name is how an operator names seeders.
type Name struct {
	url   url.URL // without srvPrefix
	srv   string  // what to look SRV records up by; "" = addresses
	fixed bool    // it is an address
}

var errName = errors.New("it is a URL such as http://seeder.example:7070, or srv+http://seeder.example to find hosts and ports by SRV records")

// Parse reads one of
//
//   - http://HOST[:PORT] or https://: one seeder, or by several addresses of HOST several;
//   - srv+http://NAME or srv+https://: those that the SRV records _murder._tcp.NAME list,
//     or those of NAME itself if it begins with an underscore (_http._tcp.seeder.ns.svc).
//
// The error says what is right.
func Parse(text string) (Name, error) {
	plain, isSRV := strings.CutPrefix(text, srvPrefix)
	u, err := url.Parse(plain)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.User != nil, u.RawQuery != "", u.Fragment != "":
		return Name{}, errName
	case isSRV && u.Port() != "":
		return Name{}, errors.New("the port is that of the SRV records; srv+" + u.Scheme + "://" + u.Hostname() + " is enough")
	}
	_, err = netip.ParseAddr(u.Hostname())
	n := Name{url: *u, fixed: err == nil && !isSRV}
	if isSRV && err == nil {
		return Name{}, errors.New("an address has no SRV records")
	}
	if isSRV {
		n.srv = "_murder._tcp." + u.Hostname()
		if strings.HasPrefix(u.Hostname(), "_") {
			n.srv = u.Hostname()
		}
		if n.certified() == "" {
			return Name{}, errors.New("SRV records are named as _SERVICE._PROTOCOL.NAME")
		}
	}
	return n, nil
}

// String is the name as the operator wrote it.
func (n Name) String() string {
	if n.srv != "" {
		return srvPrefix + n.url.String()
	}
	return n.url.String()
}

// TLS tells whether the seeders speak HTTPS.
func (n Name) TLS() bool { return n.url.Scheme == "https" }

// certified is the name that certificates must have: that which the operator wrote.
func (n Name) certified() string {
	host := n.url.Hostname()
	if n.srv != host {
		return host
	}
	parts := strings.SplitN(host, ".", 3)
	if len(parts) < 3 || !strings.HasPrefix(parts[1], "_") {
		return ""
	}
	return parts[2]
}

// unresolved is what to go by before DNS has answered: the name may be one that the
// system finds by another way, when it connects.
func (n Name) unresolved() []Seeder {
	if n.srv != "" {
		return nil
	}
	return []Seeder{{URL: n.url.String()}}
}

// lookUp asks who is behind the name. An answer has somebody.
func (n Name) lookUp(ctx context.Context, resolver Resolver) ([]Seeder, error) {
	if n.srv != "" {
		return n.records(ctx, resolver)
	}
	return n.addresses(ctx, resolver)
}

// addresses are the seeders behind a name's addresses. One is left to the name: that is
// what certificates have, and what connects by whichever family works. A host with an
// IPv4 and an IPv6 address is one; of several that have both, one family says how many
// they are.
func (n Name) addresses(ctx context.Context, resolver Resolver) ([]Seeder, error) {
	addrs, err := resolver.LookupNetIP(ctx, "ip", n.url.Hostname())
	if err != nil {
		return nil, err
	}
	var four, six []netip.Addr
	for _, addr := range addrs {
		switch addr = addr.Unmap(); {
		case addr.IsUnspecified(), addr.IsMulticast(), slices.Contains(four, addr), slices.Contains(six, addr):
		case addr.Is4():
			four = append(four, addr)
		default:
			six = append(six, addr)
		}
	}
	most := four
	if len(six) > len(four) {
		most = six
	}
	switch len(most) {
	case 0:
		return nil, errNobody(n.url.Hostname())
	case 1:
		return n.unresolved(), nil
	}
	var seeders []Seeder
	for _, addr := range most {
		seeders = append(seeders, n.at(addr.String(), n.url.Port()))
	}
	return seeders, nil
}

// records are the seeders that SRV records list. Which is asked for what does not follow
// from their priorities and weights: no seeder is better than another.
func (n Name) records(ctx context.Context, resolver Resolver) ([]Seeder, error) {
	_, records, err := resolver.LookupSRV(ctx, "", "", n.srv)
	if err != nil && len(records) == 0 { // some may be good where others are not
		return nil, err
	}
	var seeders []Seeder
	for _, record := range records {
		if host := strings.TrimSuffix(record.Target, "."); host != "" && record.Port != 0 {
			seeders = append(seeders, n.at(strings.ToLower(host), strconv.Itoa(int(record.Port))))
		}
	}
	if len(seeders) == 0 {
		return nil, errNobody(n.srv)
	}
	return seeders, nil
}

// at is the seeder at a host that the name has led to.
func (n Name) at(host, port string) Seeder {
	u := n.url
	switch {
	case port != "":
		u.Host = net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		u.Host = "[" + host + "]"
	default:
		u.Host = host
	}
	s := Seeder{URL: u.String()}
	if n.TLS() && n.certified() != host {
		s.Name = n.certified()
	}
	return s
}

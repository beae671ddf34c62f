// Package netlab makes networks for tests and measurements: machines, each a
// network namespace with one card, on a switch, by cables of limited rate that
// can be cut. It needs root and iproute2.
package netlab

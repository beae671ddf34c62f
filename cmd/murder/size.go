package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
)

// byteUnits are the units of a size, in lower case.
var byteUnits = map[string]float64{
	"": 1, "b": 1,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// bitUnits are the further units of a rate, in lower case, in bytes. Network people count bits in powers of ten.
var bitUnits = map[string]float64{"bit": 1. / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8}

// parseSize reads a number of bytes such as 64MiB, 1.5GB or 0.
func parseSize(s string) (int64, error) {
	n, ok := parseQuantity(s, byteUnits)
	if !ok {
		return 0, errors.New("a size is written as 64MiB or 100GiB")
	}
	return n, nil
}

// parseRate reads bytes a second from 500Mbit, 60MiB or 60MiB/s; 0 is no limit.
func parseRate(s string) (int64, error) {
	s = strings.TrimSuffix(strings.TrimSpace(s), "/s")
	if n, ok := parseQuantity(s, byteUnits); ok {
		return n, nil
	}
	n, ok := parseQuantity(s, bitUnits)
	if !ok {
		return 0, errors.New("a rate is written as 500Mbit or 60MiB, both a second, or 0 for no limit")
	}
	return n, nil
}

// parseQuantity reads a number that is not negative and a unit of units, in any case. What lies between zero and one is no quantity: it
// would be rounded to zero, which means "no limit".
func parseQuantity(s string, units map[string]float64) (int64, bool) {
	s = strings.TrimSpace(s)
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit, ok := units[strings.ToLower(s[len(digits):])]
	if !ok {
		return 0, false
	}
	digits = strings.TrimSpace(digits)
	if digits == "" || strings.Trim(digits, "0123456789.") != "" {
		return 0, false
	}
	f, err := strconv.ParseFloat(digits, 64)
	n := f * unit
	if err != nil || n >= math.MaxInt64 || (n > 0 && n < 1) {
		return 0, false
	}
	return int64(n), true
}

// cacheSize is a limit of the cache, or what it leaves free: bytes, or a share of the disk that the cache lies on when percent is set.
type cacheSize struct {
	bytes   int64 // unless percent is set; 0 is no limit
	percent float64
}

// parseMinFree reads 20GiB, 5% or 0.
func parseMinFree(s string) (cacheSize, error) {
	size, err := parseCacheSize(s)
	if err != nil {
		return size, errors.New("free space is written as 20GiB, as a share of the disk such as 5%, or 0")
	}
	return size, nil
}

// parseCacheSize reads 100GiB, 80% or 0.
func parseCacheSize(s string) (cacheSize, error) {
	if p, ok := strings.CutSuffix(strings.TrimSpace(s), "%"); ok {
		f, err := strconv.ParseFloat(p, 64)
		if err == nil && f > 0 && f <= 100 {
			return cacheSize{percent: f}, nil
		}
	} else if n, err := parseSize(s); err == nil {
		return cacheSize{bytes: n}, nil
	}
	return cacheSize{}, errors.New("a cache size is written as 100GiB, as a share of its disk such as 80%, or 0 for no limit")
}

// limit is the cache's limit in bytes when the cache lies in dir, which need not exist yet.
func (s cacheSize) limit(dir string) (int64, error) {
	if s.percent == 0 {
		return s.bytes, nil
	}
	total, _, err := diskSpace(dir)
	if err != nil {
		return 0, err
	}
	// 0 would be no limit at all: of a tiny share, or where the file system does not tell its size.
	return max(1, int64(float64(total)*s.percent/100)), nil
}

// diskSpace is the size of the file system that dir lies on, or would if it were made, and what of it an ordinary user may still fill, in
// bytes.
func diskSpace(dir string) (total, free int64, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("size of the disk of %s: %w", dir, err)
	}
	for {
		var st syscall.Statfs_t
		err := syscall.Statfs(dir, &st)
		if err == nil {
			unit := int64(st.Bsize)
			return int64(st.Blocks) * unit, int64(st.Bavail) * unit, nil
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return 0, 0, fmt.Errorf("size of the disk of %s: %w", dir, err)
		}
		dir = parent
	}
}

// bytesText is n for people: 256 MiB.
func bytesText(n int64) string {
	return humanize.IBytes(uint64(max(n, 0)))
}

// rateText is n bytes in took for people: 110 MiB/s, or "-" when there is nothing to tell.
func rateText(n int64, took time.Duration) string {
	if n <= 0 || took <= 0 {
		return "-"
	}
	return bytesText(int64(float64(n)/took.Seconds())) + "/s"
}

// tookText is a duration for people: 412ms, 1.23s, 2m5s.
func tookText(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%.2fs", d.Seconds())
	default:
		return d.Round(time.Second).String()
	}
}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

package integration

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Linux has no clock of its own for a process: its time namespaces shift the
// monotonic clock only, and not for processes that run already. So a test that
// wants a process to see the clock jump writes another clock_gettime over the
// one in the process's vDSO, the page of code from which Go's runtime takes
// time without a system call. The kernel copies that page for the one process.

// needsClock skips the test where a process's clock cannot be changed.
func needsClock(t testing.TB) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the clock of a process can be changed on amd64 only")
	}
}

// jumpClock has the wall clock of a running process jump by d. Its monotonic
// clock goes on as before, as when an operator or NTP sets the time.
func jumpClock(t testing.TB, p *process, d time.Duration) {
	t.Helper()
	waitUntil(t, p.name+": its clock jumps", func() error {
		err := setClock(p.PID(), d)
		if errors.Is(err, os.ErrPermission) {
			t.Skipf("may not change another process: %v", err)
		}
		if err != nil && !errors.Is(err, errNotYet) {
			return permanentError{err}
		}
		return err
	})
}

func setClock(pid int, d time.Duration) error {
	start, end, err := findVDSO(pid)
	if err != nil {
		return err
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	if err := stopProcess(pid); err != nil {
		return err
	}
	if err := outside(pid, start, end); err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	image := make([]byte, end-start)
	if _, err := mem.ReadAt(image, int64(start)); err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	at, err := clockSymbol(image)
	if err != nil {
		return err
	}
	if _, err := mem.WriteAt(clockCode(d), int64(start+at)); err != nil {
		return fmt.Errorf("write to the vDSO: %w", err)
	}
	return nil
}

// clockCode is clock_gettime(2) as the kernel has it, but for CLOCK_REALTIME
// (0), which is d later.
func clockCode(d time.Duration) []byte {
	code := []byte{
		0xb8, 228, 0, 0, 0, // mov eax, 228: clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi: which clock
		0x75, 13, // jnz to ret
		0x48, 0xb9, // mov rcx, seconds
	}
	code = binary.LittleEndian.AppendUint64(code, uint64(int64(d/time.Second)))
	return append(code,
		0x48, 0x01, 0x0e, // add [rsi], rcx: tv_sec
		0xc3) // ret
}

// findVDSO reads where a process has its vDSO.
func findVDSO(pid int) (start, end uint64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			_, err := fmt.Sscanf(line, "%x-%x ", &start, &end)
			return start, end, err
		}
	}
	return 0, 0, errors.New("the process has no vDSO")
}

// clockSymbol finds clock_gettime in a vDSO, as an offset.
func clockSymbol(image []byte) (uint64, error) {
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, fmt.Errorf("read the vDSO: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(clockCode(0))) {
			return s.Value, nil
		}
	}
	return 0, errors.Join(err, errors.New("the vDSO has no room for another clock_gettime"))
}

// stopProcess stops a process. It returns errNotYet if a thread still runs.
func stopProcess(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	return eachThread(pid, "stat", func(stat string) error {
		_, rest, _ := strings.Cut(stat, ") ") // the name may hold spaces
		if !strings.HasPrefix(rest, "T") {
			return errNotYet
		}
		return nil
	})
}

// outside returns errNotYet if a thread of a stopped process is between two addresses.
func outside(pid int, start, end uint64) error {
	return eachThread(pid, "syscall", func(text string) error {
		words := strings.Fields(text) // proc_pid_syscall(5): the last is the program counter
		pc, err := strconv.ParseUint(words[len(words)-1], 0, 64)
		if err == nil && start <= pc && pc < end {
			return errNotYet
		}
		return err
	})
}

// eachThread looks at a file of /proc of each thread of a process.
func eachThread(pid int, file string, look func(text string) error) error {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", pid, file))
	if err != nil || len(paths) == 0 {
		return errors.Join(err, errEnded)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return errNotYet // the thread has ended meanwhile
		}
		if err != nil {
			return err
		}
		if err := look(string(text)); err != nil {
			return err
		}
	}
	return nil
}

// waitClock returns once a daemon says that it is d later than it is.
func (d *daemon) waitClock(t testing.TB, later time.Duration) {
	t.Helper()
	d.waitUntil(t, "another time", func() error {
		resp, err := d.http.Get(d.URL() + "/livez")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		told, err := http.ParseTime(resp.Header.Get("Date"))
		if off := told.Sub(time.Now().Add(later)); err == nil && off.Abs() > time.Minute {
			err = fmt.Errorf("it tells %v", told)
		}
		return err
	})
}

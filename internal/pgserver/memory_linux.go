package pgserver

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// MemoryDir returns a directory in memory with room for tests' servers, "" if there
// is none or $TMPDIR says where to put temporary files.
//
// Servers are made of many small files, a database of 300. For each new one ext4 goes
// over all that were removed in the last minutes: that was half of the system time of
// the tests that make many databases.
func MemoryDir() string {
	const dir, tmpfs, room = "/dev/shm", 0x01021994, 4 << 30 // what two test programs need is below 1 GiB
	if os.Getenv("TMPDIR") != "" {
		return ""
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil || fs.Type != tmpfs || int64(fs.Bavail)*int64(fs.Bsize) < room || availableMemory() < room {
		return ""
	}
	if f, err := os.MkdirTemp(dir, homePrefix); err != nil || os.Remove(f) != nil {
		return ""
	}
	return dir
}

// availableMemory is what the kernel says can be used without swapping.
func availableMemory() (bytes int64) {
	info, _ := os.ReadFile("/proc/meminfo")
	if _, after, ok := strings.Cut(string(info), "MemAvailable:"); ok {
		_, _ = fmt.Sscan(after, &bytes)
	}
	bytes <<= 10
	for _, limit := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} { // of a container
		var n int64
		if s, err := os.ReadFile(limit); err == nil {
			if _, err := fmt.Sscan(string(s), &n); err == nil {
				bytes = min(bytes, n)
			}
		}
	}
	return bytes
}

//go:build !linux

package pgserver

// MemoryDir returns "": there is no directory in memory.
func MemoryDir() string { return "" }

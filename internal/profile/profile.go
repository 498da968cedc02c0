// Package profile writes profiles for go tool pprof and for the compiler: those
// fields of profile.proto that baldur needs, by hand, as the module that has them
// all would be one that every program with baldur requires.
package profile

import (
	"compress/gzip"
	"encoding/binary"
	"io"
)

// Profile is what a profile says.
type Profile struct {
	SampleTypes       []ValueType // of Sample.Values
	DefaultSampleType string
	TimeNanos         int64 // since 1970
	Comment           string
	Samples           []Sample
}

// ValueType tells what a value is.
type ValueType struct{ Type, Unit string }

// Sample is a stack with its values.
type Sample struct {
	Stack  []Frame // the innermost first
	Values []int64
	Labels []Label
}

// Frame is a line of a function, which starts at another line, or at 0 where that
// is not known.
type Frame struct {
	Function, File string
	Start, Line    int
}

// Label has a text or, with a unit, a number.
type Label struct {
	Key, Text, Unit string
	Number          int64
}

// Write writes p, gzip-compressed.
func (p *Profile) Write(w io.Writer) error {
	z := gzip.NewWriter(w)
	if _, err := z.Write(p.encode()); err != nil {
		return err
	}
	return z.Close()
}

func (p *Profile) encode() []byte {
	var out message
	strings := table[string]{"": 0} // what an index of 0 means
	functions, locations := table[Frame]{}, table[Frame]{}
	out.text(6, "")
	index := func(s string) uint64 {
		i, known := strings.index(s, 0)
		if !known {
			out.text(6, s)
		}
		return i
	}
	for _, t := range p.SampleTypes {
		out.message(1, func(m *message) { m.number(1, index(t.Type)); m.number(2, index(t.Unit)) })
	}
	// All is known: pprof need not look for a binary.
	out.message(3, func(m *message) { m.number(1, 1); m.number(7, 1); m.number(8, 1); m.number(9, 1) })
	location := func(f Frame) uint64 {
		id, known := locations.index(f, 1)
		if known {
			return id
		}
		of := Frame{Function: f.Function, File: f.File, Start: f.Start}
		function, known := functions.index(of, 1)
		if !known {
			name := index(f.Function)
			out.message(5, func(m *message) {
				m.number(1, function)
				m.number(2, name)
				m.number(3, name)
				m.number(4, index(f.File))
				m.number(5, uint64(f.Start))
			})
		}
		out.message(4, func(m *message) {
			m.number(1, id)
			m.number(2, 1)
			m.message(4, func(m *message) { m.number(1, function); m.number(2, uint64(f.Line)) })
		})
		return id
	}
	for _, s := range p.Samples {
		out.message(2, func(m *message) {
			for _, f := range s.Stack {
				m.number(1, location(f))
			}
			for _, v := range s.Values {
				m.number(2, uint64(v))
			}
			for _, l := range s.Labels {
				m.message(3, func(m *message) {
					m.number(1, index(l.Key))
					m.number(2, index(l.Text))
					m.number(3, uint64(l.Number))
					m.number(4, index(l.Unit))
				})
			}
		})
	}
	out.number(9, uint64(p.TimeNanos))
	out.number(13, index(p.Comment))
	out.number(14, index(p.DefaultSampleType))
	return out
}

// table gives what it is asked for a number.
type table[K comparable] map[K]uint64

// index returns k's number, the first of which is given.
func (t table[K]) index(k K, first uint64) (n uint64, known bool) {
	n, known = t[k]
	if !known {
		n = uint64(len(t)) + first
		t[k] = n
	}
	return n, known
}

// message is one of protocol buffers. A field that is repeated may be written in
// any order with others, and numbers singly.
type message []byte

func (m *message) number(field int, n uint64) {
	*m = binary.AppendUvarint(*m, uint64(field)<<3)
	*m = binary.AppendUvarint(*m, n)
}

func (m *message) text(field int, s string) {
	*m = binary.AppendUvarint(*m, uint64(field)<<3|2)
	*m = binary.AppendUvarint(*m, uint64(len(s)))
	*m = append(*m, s...)
}

// message appends what write writes. It may append to m, too.
func (m *message) message(field int, write func(*message)) {
	var inner message
	write(&inner)
	m.text(field, string(inner))
}

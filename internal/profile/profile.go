// Package profile writes profiles for go tool pprof: profile.proto of
// github.com/google/pprof, gzip-compressed.
//
// That repository's own package does so, too, but a program that requires
// baldur would have it upgraded, with whatever else uses it.
package profile

import (
	"compress/gzip"
	"encoding/binary"
	"io"
	"time"
)

// ValueType is what a value counts, and its unit.
type ValueType struct{ Type, Unit string }

// Frame is a line of source. Frames that are equal are one location.
type Frame struct {
	Function, File string
	Line           int64
	StartLine      int64 // of the function; 0: unknown
}

// Label is a name with a text, or with a number and its unit.
type Label struct {
	Key  string
	Str  string // the label is a number if it is empty
	Num  int64
	Unit string
}

// Profile gathers samples. The zero value is an empty profile; its fields are
// set before it is written, in any order with Add.
type Profile struct {
	SampleTypes []ValueType // a sample has a value for each
	Default     string      // the type of SampleTypes that is shown first
	PeriodType  ValueType
	Period      int64
	Time        time.Time
	Comments    []string

	samples, functions, locations message
	strings                       map[string]uint64
	texts                         []string
	functionIDs                   map[function]uint64
	locationIDs                   map[Frame]uint64
}

type function struct {
	name, file string
	start      int64
}

// The numbers of profile.proto's fields.
const (
	profileSampleType        = 1
	profileSample            = 2
	profileMapping           = 3
	profileLocation          = 4
	profileFunction          = 5
	profileStringTable       = 6
	profileTimeNanos         = 9
	profilePeriodType        = 11
	profilePeriod            = 12
	profileComment           = 13
	profileDefaultSampleType = 14

	valueTypeType = 1
	valueTypeUnit = 2

	sampleLocationID = 1
	sampleValue      = 2
	sampleLabel      = 3

	labelKey     = 1
	labelStr     = 2
	labelNum     = 3
	labelNumUnit = 4

	mappingID             = 1
	mappingHasFunctions   = 7
	mappingHasFilenames   = 8
	mappingHasLineNumbers = 9

	locationID        = 1
	locationMappingID = 2
	locationLine      = 4

	lineFunctionID = 1
	lineLine       = 2

	functionID         = 1
	functionName       = 2
	functionSystemName = 3
	functionFilename   = 4
	functionStartLine  = 5
)

const theMapping = 1 // there is one: all is known, and pprof need not look for a binary

// Add adds a sample: its stack, the innermost frame first, and a value for each
// of SampleTypes.
func (p *Profile) Add(stack []Frame, values []int64, labels []Label) {
	var s, ids, vs message
	for _, f := range stack {
		ids.varint(p.location(f))
	}
	for _, v := range values {
		vs.varint(uint64(v))
	}
	s.bytes(sampleLocationID, ids)
	s.bytes(sampleValue, vs)
	for _, l := range labels {
		var m message
		m.uint(labelKey, p.text(l.Key))
		if l.Str != "" {
			m.uint(labelStr, p.text(l.Str))
		} else {
			m.uint(labelNum, uint64(l.Num))
			m.uint(labelNumUnit, p.text(l.Unit))
		}
		s.bytes(sampleLabel, m)
	}
	p.samples.bytes(profileSample, s)
}

func (p *Profile) location(f Frame) uint64 {
	if id, ok := p.locationIDs[f]; ok {
		return id
	}
	if p.locationIDs == nil {
		p.locationIDs = map[Frame]uint64{}
	}
	id := uint64(len(p.locationIDs) + 1)
	p.locationIDs[f] = id
	var line, l message
	line.uint(lineFunctionID, p.function(function{f.Function, f.File, f.StartLine}))
	line.uint(lineLine, uint64(f.Line))
	l.uint(locationID, id)
	l.uint(locationMappingID, theMapping)
	l.bytes(locationLine, line)
	p.locations.bytes(profileLocation, l)
	return id
}

func (p *Profile) function(f function) uint64 {
	if id, ok := p.functionIDs[f]; ok {
		return id
	}
	if p.functionIDs == nil {
		p.functionIDs = map[function]uint64{}
	}
	id := uint64(len(p.functionIDs) + 1)
	p.functionIDs[f] = id
	var m message
	m.uint(functionID, id)
	m.uint(functionName, p.text(f.name))
	m.uint(functionSystemName, p.text(f.name))
	m.uint(functionFilename, p.text(f.file))
	m.uint(functionStartLine, uint64(f.start))
	p.functions.bytes(profileFunction, m)
	return id
}

// text returns the index of a string in the table, whose first is empty.
func (p *Profile) text(s string) uint64 {
	if i, ok := p.strings[s]; ok {
		return i
	}
	if p.strings == nil {
		p.strings = map[string]uint64{"": 0}
		p.texts = []string{""}
		if s == "" {
			return 0
		}
	}
	i := uint64(len(p.texts))
	p.strings[s] = i
	p.texts = append(p.texts, s)
	return i
}

func (p *Profile) valueType(t ValueType) message {
	var m message
	m.uint(valueTypeType, p.text(t.Type))
	m.uint(valueTypeUnit, p.text(t.Unit))
	return m
}

// Write writes the profile.
func (p *Profile) Write(w io.Writer) error {
	var m, mapping message
	for _, t := range p.SampleTypes {
		m.bytes(profileSampleType, p.valueType(t))
	}
	m = append(m, p.samples...)
	mapping.uint(mappingID, theMapping)
	mapping.uint(mappingHasFunctions, 1)
	mapping.uint(mappingHasFilenames, 1)
	mapping.uint(mappingHasLineNumbers, 1)
	m.bytes(profileMapping, mapping)
	m = append(m, p.locations...)
	m = append(m, p.functions...)
	if !p.Time.IsZero() {
		m.uint(profileTimeNanos, uint64(p.Time.UnixNano()))
	}
	if p.PeriodType != (ValueType{}) {
		m.bytes(profilePeriodType, p.valueType(p.PeriodType))
	}
	m.uint(profilePeriod, uint64(p.Period))
	var comments message
	for _, c := range p.Comments {
		comments.varint(p.text(c))
	}
	m.bytes(profileComment, comments)
	m.uint(profileDefaultSampleType, p.text(p.Default))
	for _, s := range p.texts { // all of them are known now
		m.bytes(profileStringTable, message(s))
	}
	z := gzip.NewWriter(w)
	if _, err := z.Write(m); err != nil {
		return err
	}
	return z.Close()
}

// message is an encoded protocol buffer.
type message []byte

func (m *message) varint(v uint64) { *m = binary.AppendUvarint(*m, v) }

// uint adds a field that is a number; 0 is the default and left out.
func (m *message) uint(field int, v uint64) {
	if v != 0 {
		m.varint(uint64(field) << 3)
		m.varint(v)
	}
}

// bytes adds a field that is a message, a text or packed numbers.
func (m *message) bytes(field int, b message) {
	m.varint(uint64(field)<<3 | 2)
	m.varint(uint64(len(b)))
	*m = append(*m, b...)
}

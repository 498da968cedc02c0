// Package callsite finds in a call stack the line of the application that took a
// connection, and what it took it for.
package callsite

import (
	"database/sql"
	"path"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/baldur-go/baldur/internal/stack"
)

// An Info is what is known of a call site.
type Info struct {
	Kind   string        // what the connection was taken for: "query", "exec", "tx", "conn", "stmt", "ping", or "unknown"
	Frames []stack.Frame // from the first frame of the application on, or of a library's if there is none
	At     int           // the call site's index in Frames
}

// A Skip is what is never a call site, beside libraries.
type Skip struct {
	Packages  []string // by import path; one that ends in a slash stands for all below it, too
	Functions []string // by name; it may lack the first elements of its import path
}

const (
	sqlPackage  = "database/sql"
	ownPackage  = "github.com/baldur-go/baldur"
	ownInternal = ownPackage + "/internal/"
)

// In these lists an entry that ends in a slash stands for a package and all below it.
var (
	// plumbing are the packages at the inner end of every stack.
	plumbing = []string{sqlPackage, ownPackage, ownInternal, "runtime"}

	// launchers are packages that run functions which they were given, beside the
	// standard library. No call site is in them, and they are not what a library does.
	launchers = []string{
		"github.com/avast/retry-go/",
		"github.com/cenkalti/backoff/",
		"github.com/gin-gonic/gin/",
		"github.com/go-chi/chi/",
		"github.com/gofiber/fiber/",
		"github.com/gorilla/",
		"github.com/grpc-ecosystem/",
		"github.com/labstack/echo/",
		"github.com/onsi/ginkgo/",
		"github.com/robfig/cron/",
		"github.com/sourcegraph/conc/",
		"github.com/spf13/cobra/",
		"github.com/stretchr/testify/",
		"github.com/urfave/cli/",
		"golang.org/x/net/",
		"golang.org/x/sync/",
		"google.golang.org/grpc/",
	}

	// libraries stand between an application and database/sql.
	libraries = []string{
		"ariga.io/atlas/",
		"entgo.io/ent/",
		"github.com/Masterminds/squirrel/",
		"github.com/XSAM/otelsql/",
		"github.com/aarondl/sqlboiler/",
		"github.com/amacneil/dbmate/",
		"github.com/avito-tech/go-transaction-manager/",
		"github.com/beego/beego/",
		"github.com/bokwoon95/sq/",
		"github.com/doug-martin/goqu/",
		"github.com/georgysavva/scany/",
		"github.com/go-gorp/gorp/",
		"github.com/go-jet/jet/",
		"github.com/go-rel/",
		"github.com/go-xorm/",
		"github.com/gobuffalo/pop/",
		"github.com/gocraft/dbr/",
		"github.com/golang-migrate/migrate/",
		"github.com/jinzhu/gorm/",
		"github.com/jmoiron/sqlx/",
		"github.com/mattermost/morph/",
		"github.com/mattermost/squirrel/",
		"github.com/pressly/goose/",
		"github.com/riverqueue/river/",
		"github.com/rubenv/sql-migrate/",
		"github.com/stephenafamo/bob/",
		"github.com/stephenafamo/scan/",
		"github.com/upper/db/",
		"github.com/uptrace/bun/",
		"github.com/uptrace/opentelemetry-go-extra/",
		"github.com/vingarcia/ksql/",
		"github.com/volatiletech/sqlboiler/",
		"github.com/zeromicro/go-zero/core/stores/",
		"gorm.io/",
		"xorm.io/",
	}
)

// Of returns the call site of a stack: the first frame of the application. A goroutine
// that a library has started has no such frame; its call site is the library's outermost
// one. A goroutine that was started by a go statement in database/sql is named after that
// statement. s may be nil.
func Of(s *stack.Site, skip Skip) Info {
	if s == nil {
		return Info{Kind: "unknown"}
	}
	launch, launched := s.GoStatement()
	return of(s.Frames(), skip, launch, launched)
}

// Locate is Of for the frames of another stack, innermost first.
func Locate(frames []stack.Frame, skip Skip) Info { return of(frames, skip, stack.Frame{}, false) }

// Span returns the indices in s.Frames() of the application's innermost frame, which is the
// call site, and of its outermost; of a library's frames if there are none, where the outermost
// is the call site; −1 without either. s may be nil.
func Span(s *stack.Site, skip Skip) (inner, outer int) {
	if s == nil {
		return -1, -1
	}
	inner, outer = -1, -1
	library := -1
	for i, f := range locate(s.Frames()) {
		switch f.role(skip) {
		case ofLibrary:
			library = i
		case ofApplication:
			if inner < 0 {
				inner = i
			}
			outer = i
		}
	}
	if inner < 0 {
		return library, library
	}
	return inner, outer
}

func of(frames []stack.Frame, skip Skip, launch stack.Frame, launched bool) Info {
	all := locate(frames)
	info := Info{Kind: kindOf(all)}
	inner, outer, ours, inSQL := -1, -1, -1, -1 // frames: the library's innermost and outermost, one of baldur's on a goroutine of its own, database/sql's outermost
	for i, f := range all {
		switch f.role(skip) {
		case ofPlumbing:
			if f.pkg == sqlPackage {
				inSQL = i
			} else if ours < 0 && isOwn(f.pkg) && i > 0 && all[i-1].pkg == sqlPackage {
				ours = i
			}
		case ofLibrary:
			if inner < 0 {
				inner = i
			}
			outer = i
		case ofApplication:
			info.Frames = shown(all[i:])
			return info
		}
	}
	switch {
	case inner >= 0:
		info.Frames, info.At = shown(all[inner:]), outer-inner
	case ours >= 0: // a quorum's
		info.Frames = shown(all[ours:])
	case inSQL >= 0:
		begun := stack.Frame{Function: all[inSQL].Function}
		if launched {
			begun.File, begun.Line = launch.File, launch.Line
		}
		info.Frames = append([]stack.Frame{begun}, shown(all[inSQL+1:])...)
	default:
		info.Frames = shown(all)
	}
	if launched {
		info.Frames = append(info.Frames, launch)
	}
	return info
}

// A role is what a frame's function is to the search for a call site.
type role int

const (
	ofPlumbing role = iota
	ofLauncher      // of the standard library, too
	ofLibrary
	ofApplication
)

func (f locatedFrame) role(skip Skip) role {
	switch {
	case f.is(plumbing):
		return ofPlumbing
	case f.std || f.is(launchers):
		return ofLauncher
	case f.is(libraries) || f.is(skip.Packages) || f.isFunction(skip.Functions):
		return ofLibrary
	}
	return ofApplication
}

// isOwn tells whether a package is the root or an internal one of this module.
func isOwn(pkg string) bool { return pkg == ownPackage || strings.HasPrefix(pkg, ownInternal) }

// shown are the frames that a report has.
func shown(located []locatedFrame) []stack.Frame {
	var frames []stack.Frame
	for _, f := range located {
		if f.Function != "runtime.goexit" {
			frames = append(frames, f.Frame)
		}
	}
	return frames
}

// kindOf finds what a connection is taken for in database/sql's own frames: those
// nearest to the driver, since database/sql may also call an application. The
// outermost of them counts.
func kindOf(all []locatedFrame) string {
	k := "unknown"
	begun := false
	for _, f := range all {
		if f.pkg != sqlPackage {
			if begun {
				break
			}
			continue
		}
		begun = true
		if of, ok := entryKinds[f.Function]; ok {
			k = of
		}
	}
	return k
}

// A locatedFrame is a frame and the package whose source it is in.
//
// A function's name tells its package, except where it is a closure's: a closure
// of a function that was inlined into another package is named after the function
// it ended up in, as "main.serve.(*DB).QueryContext.func1" of database/sql. Then its
// file tells.
type locatedFrame struct {
	stack.Frame
	pkg string // "": only dir is known
	std bool   // of the standard library
	dir string // of its file, as an import path with something before it
}

func locate(frames []stack.Frame) []locatedFrame {
	all := make([]locatedFrame, len(frames))
	for i, f := range frames {
		l := locatedFrame{Frame: f}
		folder := path.Dir(strings.ReplaceAll(f.File, `\`, "/"))
		if pkg, ok := standardPackage(folder); ok {
			l.pkg, l.std = pkg, true
		} else if pkg, ok := packageOf(f.Function); ok {
			l.pkg = pkg
			if folder != "." && !l.isTest() {
				folders.Store(folder, pkg)
			}
		} else {
			l.dir = importPath(folder)
		}
		all[i] = l
	}
	for i, f := range all {
		if f.dir == "" {
			continue
		}
		folder := path.Dir(strings.ReplaceAll(f.File, `\`, "/"))
		if pkg, ok := folders.Load(folder); ok {
			all[i].pkg, all[i].dir = pkg.(string), ""
		}
	}
	return all
}

func (f locatedFrame) isTest() bool { return strings.HasSuffix(f.File, "_test.go") }

// folders are those that were met, with the packages in them.
var folders sync.Map // string → string

// is tells whether a frame is of a package in a list.
func (f locatedFrame) is(list []string) bool {
	if f.isTest() {
		return false // a package's own tests are an application of it
	}
	for _, p := range list {
		base, below := strings.CutSuffix(p, "/")
		if f.dir != "" {
			if in := "/" + f.dir + "/"; strings.HasSuffix(in, "/"+base+"/") || below && strings.Contains(in, "/"+base+"/") {
				return true
			}
		} else if f.pkg == base || below && strings.HasPrefix(f.pkg, p) {
			return true
		}
	}
	return false
}

// isFunction tells whether a frame is of a function in a list, or of a closure in
// one. A name may lack the first elements of its import path.
func (f locatedFrame) isFunction(list []string) bool {
	if len(list) == 0 {
		return false
	}
	name, _ := cutClosure(localName(f.Function))
	in := "/" + f.pkg
	if f.dir != "" {
		in = "/" + f.dir
	}
	of := innermost.FindString(name) // of a closure, what was inlined
	for _, p := range list {
		p = "/" + strings.ReplaceAll(strings.ReplaceAll(p, "[...]", ""), "%2e", ".")
		if strings.HasSuffix(in+"."+name, p) || strings.HasSuffix(in+"."+of, p) {
			return true
		}
	}
	return false
}

// standardRoot is where the standard library's files lie, with a slash at its end;
// "" in a program built with -trimpath.
var standardRoot = func() string {
	file, _ := runtime.FuncForPC(reflect.ValueOf(sql.Open).Pointer()).FileLine(reflect.ValueOf(sql.Open).Pointer())
	root, _ := strings.CutSuffix(file, sqlPackage+"/sql.go")
	return root
}()

// standardPackage returns the package of the standard library in a folder.
func standardPackage(folder string) (pkg string, ok bool) {
	if standardRoot != "" {
		return strings.CutPrefix(folder, standardRoot)
	}
	first, _, _ := strings.Cut(folder, "/")
	return folder, slices.Contains(standardTop, first)
}

// standardTop are the first elements of the standard library's import paths.
// A module's path may lack a dot as they do.
var standardTop = strings.Fields(`archive bufio bytes cmp compress container context crypto database debug
	embed encoding errors expvar flag fmt go hash html image index internal io iter log maps math mime net
	os path plugin reflect regexp runtime slices sort strconv strings structs sync syscall testing text time
	unicode unique unsafe weak`)

var version = regexp.MustCompile(`@v[^/]*`)

// importPath makes of a folder in the module cache its import path, with something
// before it.
func importPath(folder string) string {
	folder = version.ReplaceAllString(folder, "")
	if !strings.Contains(folder, "!") {
		return folder
	}
	var b strings.Builder
	for i := 0; i < len(folder); i++ {
		if c := folder[i]; c == '!' && i+1 < len(folder) && 'a' <= folder[i+1] && folder[i+1] <= 'z' {
			i++
			b.WriteByte(folder[i] - 'a' + 'A')
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Started tells whether a function's name is that of a call site which is a go
// statement's goroutine in database/sql.
func Started(function string) bool { return strings.HasPrefix(function, sqlPackage+".") }

// SplitName cuts a function's full name after its import path, in which the dots of
// the last element are escaped: "gopkg.in/yaml%2ev3.(*T).F".
func SplitName(function string) (pkg, local string) {
	slash := strings.LastIndexByte(function, '/') + 1
	if i := strings.IndexByte(function, '['); i >= 0 && i < slash { // of a type argument
		slash = strings.LastIndexByte(function[:i], '/') + 1
	}
	dot := strings.IndexByte(function[slash:], '.')
	if dot < 0 {
		return function, ""
	}
	return strings.ReplaceAll(function[:slash+dot], "%2e", "."), function[slash+dot+1:]
}

// packageOf returns the package in a function's name; ok tells that it is surely
// the one of the function's source.
func packageOf(function string) (pkg string, ok bool) {
	pkg, local := SplitName(function)
	name, closure := cutClosure(withoutTypes(local))
	return pkg, !closure || name == "glob." || plainFunc.MatchString(name)
}

func localName(function string) string {
	_, local := SplitName(function)
	return withoutTypes(local)
}

func withoutTypes(local string) string { return strings.ReplaceAll(local, "[...]", "") }

var (
	closureEnd = regexp.MustCompile(`(\.func\d+|\.\d+|\.gowrap\d+|\.deferwrap\d+|-range\d+|-fm)+$`)
	plainFunc  = regexp.MustCompile(`^(\(\*?[^()]*\)\.)?[^.()]+$`) // a function's, or a method's of a pointer
	innermost  = regexp.MustCompile(`(\(\*?[^()]*\)\.)?[^.()]+$`)
)

// cutClosure returns the name of what a closure is in.
func cutClosure(local string) (name string, closure bool) {
	name = closureEnd.ReplaceAllString(local, "")
	return name, name != local
}

// entryKinds tells what a connection is taken for by database/sql's methods.
var entryKinds = map[string]string{
	"database/sql.(*DB).QueryContext":     "query",
	"database/sql.(*DB).ExecContext":      "exec",
	"database/sql.(*DB).BeginTx":          "tx",
	"database/sql.(*DB).Conn":             "conn",
	"database/sql.(*DB).PrepareContext":   "stmt",
	"database/sql.(*DB).PingContext":      "ping",
	"database/sql.(*Stmt).ExecContext":    "stmt",
	"database/sql.(*Stmt).QueryContext":   "stmt",
	"database/sql.(*Conn).QueryContext":   "conn", // a connection that was bound at its first use
	"database/sql.(*Conn).ExecContext":    "conn",
	"database/sql.(*Conn).PrepareContext": "conn",
	"database/sql.(*Conn).PingContext":    "conn",
	"database/sql.(*Conn).BeginTx":        "conn",
}

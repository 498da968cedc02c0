package baldur

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

// siteInfo is what a report tells of a call site.
type siteInfo struct {
	kind   Kind    // KindUnknown where the stack does not tell
	frames []Frame // from the first frame of the application on, or of a library's if there is none
	at     int     // the call site's index in frames
}

// A siteCache names call sites by one configuration of what is skipped, which all
// trackers with that configuration share. Its siteInfos are made when a report
// first meets a site.
type siteCache struct {
	packages, functions []string // beside libraries
	tag                 uint32   // of the sites that are captured for it
	m                   sync.Map // *stack.Site → *siteInfo
}

// siteCaches holds every siteCache by its tag. They are few: programs have a
// configuration or two.
var siteCaches struct {
	mu  sync.Mutex
	all []*siteCache
}

// siteCacheOf returns the cache of a configuration. A site is captured for one of
// them, so all that is told of it is told by the same names.
func siteCacheOf(packages, functions []string) *siteCache {
	normal := func(list []string) []string {
		return slices.Compact(slices.Sorted(slices.Values(list)))
	}
	packages, functions = normal(packages), normal(functions)
	siteCaches.mu.Lock()
	defer siteCaches.mu.Unlock()
	for _, c := range siteCaches.all {
		if slices.Equal(c.packages, packages) && slices.Equal(c.functions, functions) {
			return c
		}
	}
	c := &siteCache{packages: packages, functions: functions, tag: uint32(len(siteCaches.all))}
	siteCaches.all = append(siteCaches.all, c)
	return c
}

// siteInfoOf is what is told of a site by the cache that it was captured for.
func siteInfoOf(s *stack.Site) *siteInfo {
	siteCaches.mu.Lock()
	var c *siteCache
	if i := int(s.Tag()); i < len(siteCaches.all) {
		c = siteCaches.all[i]
	}
	siteCaches.mu.Unlock()
	if c == nil { // the site of all that are too many, and no pool was made
		c = new(siteCache)
	}
	return c.of(s)
}

func (c *siteCache) of(s *stack.Site) *siteInfo {
	if s == nil { // CaptureOff
		return &siteInfo{kind: KindUnknown}
	}
	if v, ok := c.m.Load(s); ok {
		return v.(*siteInfo)
	}
	v, _ := c.m.LoadOrStore(s, c.resolve(s))
	return v.(*siteInfo)
}

const (
	sqlPackage = "database/sql"
	ownPackage = "github.com/baldur-go/baldur"
)

// In these lists an entry that ends in a slash stands for a package and all below it.
var (
	// plumbing are the packages at the inner end of every stack.
	plumbing = []string{sqlPackage, ownPackage, ownPackage + "/internal/", "runtime"}

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

// resolve finds the call site in a stack. It is the first frame of the
// application. A goroutine of a library's own has none: there it is the library's
// outermost frame. A goroutine that a go statement has begun in database/sql is
// told as such.
func (c *siteCache) resolve(s *stack.Site) *siteInfo {
	all := locate(s.Frames())
	info := &siteInfo{kind: kindOf(all)}
	inner, outer, own, inSQL := -1, -1, -1, -1 // the library's frames; a goroutine's of ours; database/sql's outermost
	for i, f := range all {
		switch {
		case f.is(plumbing):
			if f.pkg == sqlPackage {
				inSQL = i
			} else if own < 0 && f.pkg == ownPackage && i > 0 && all[i-1].pkg == sqlPackage {
				own = i
			}
		case f.std || f.is(launchers):
		case f.is(libraries) || f.is(c.packages) || f.isFunction(c.functions):
			if inner < 0 {
				inner = i
			}
			outer = i
		default:
			info.frames = publicFrames(all[i:])
			return info
		}
	}
	launch, launched := s.GoStatement()
	switch {
	case inner >= 0:
		info.frames, info.at = publicFrames(all[inner:]), outer-inner
	case own >= 0: // a quorum's
		info.frames = publicFrames(all[own:])
	case inSQL >= 0:
		begun := Frame{Function: all[inSQL].Function}
		if launched {
			begun.File, begun.Line = launch.File, launch.Line
		}
		info.frames = append([]Frame{begun}, publicFrames(all[inSQL+1:])...)
	default:
		info.frames = publicFrames(all)
	}
	if launched {
		info.frames = append(info.frames, Frame(launch))
	}
	return info
}

func publicFrames(located []locatedFrame) []Frame {
	var frames []Frame
	for _, f := range located {
		if f.Function != "runtime.goexit" {
			frames = append(frames, Frame(f.Frame))
		}
	}
	return frames
}

// kindOf reads what a connection is taken for in database/sql's own frames: those
// nearest to the driver, since an application may be called by database/sql too.
// The outermost of them wins.
func kindOf(all []locatedFrame) Kind {
	k := KindUnknown
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

// splitName cuts a function's full name after its import path, in which the dots of
// the last element are escaped: "gopkg.in/yaml%2ev3.(*T).F".
func splitName(function string) (pkg, local string) {
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
	pkg, local := splitName(function)
	name, closure := cutClosure(withoutTypes(local))
	return pkg, !closure || name == "glob." || plainFunc.MatchString(name)
}

func localName(function string) string {
	_, local := splitName(function)
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

// CallSite is the line that took the connection: see [ConnectionInfo.CallSite].
func (r Return) CallSite() Frame {
	info := r.t.sites.of(r.site)
	return ConnectionInfo{StackTrace: info.frames, site: info.at}.CallSite()
}

// entryKinds tells what a connection is taken for by database/sql's methods.
var entryKinds = map[string]Kind{
	"database/sql.(*DB).QueryContext":     KindQuery,
	"database/sql.(*DB).ExecContext":      KindExec,
	"database/sql.(*DB).BeginTx":          KindTx,
	"database/sql.(*DB).Conn":             KindConn,
	"database/sql.(*DB).PrepareContext":   KindStmt,
	"database/sql.(*DB).PingContext":      KindPing,
	"database/sql.(*Stmt).ExecContext":    KindStmt,
	"database/sql.(*Stmt).QueryContext":   KindStmt,
	"database/sql.(*Conn).QueryContext":   KindConn, // a connection that was bound at its first use
	"database/sql.(*Conn).ExecContext":    KindConn,
	"database/sql.(*Conn).PrepareContext": KindConn,
	"database/sql.(*Conn).PingContext":    KindConn,
	"database/sql.(*Conn).BeginTx":        KindConn,
}

package baldur

import (
	"strings"
	"sync"

	"github.com/baldur-go/baldur/internal/stack"
)

// siteInfo is what a report tells of a call site.
type siteInfo struct {
	kind   Kind    // KindUnknown where the stack does not tell
	frames []Frame // from the first frame of the application on
}

// siteCache keeps a tracker's siteInfos, made when a report first meets a site.
type siteCache struct {
	skip []string // packages beside libraries
	m    sync.Map // *stack.Site → *siteInfo
}

func (c *siteCache) of(s *stack.Site) *siteInfo {
	if s == nil { // CaptureOff
		return &siteInfo{kind: KindUnknown}
	}
	if v, ok := c.m.Load(s); ok {
		return v.(*siteInfo)
	}
	v, _ := c.m.LoadOrStore(s, c.resolve(s.Frames()))
	return v.(*siteInfo)
}

// plumbing are the packages at the inner end of every stack. In these lists an
// entry that ends in a slash stands for all packages below it.
var plumbing = []string{
	"database/sql",
	"github.com/baldur-go/baldur",
	"github.com/baldur-go/baldur/internal/",
	"runtime",
}

// libraries are the others that a call site is not in: what stands between an
// application and database/sql.
var libraries = []string{
	"ariga.io/atlas/",
	"entgo.io/ent/",
	"github.com/Masterminds/squirrel",
	"github.com/XSAM/otelsql",
	"github.com/georgysavva/scany/",
	"github.com/golang-migrate/migrate/",
	"github.com/jmoiron/sqlx",
	"github.com/pressly/goose/",
	"github.com/riverqueue/river",
	"github.com/riverqueue/river/",
	"github.com/uptrace/bun",
	"github.com/uptrace/bun/",
	"gorm.io/",
}

func (c *siteCache) resolve(all []stack.Frame) *siteInfo {
	info := &siteInfo{kind: KindUnknown}
	start, library, own := -1, -1, 0
	for i, f := range all {
		if k, ok := entryKinds[f.Function]; ok && start < 0 {
			info.kind = k // the outermost of database/sql's own frames wins
		}
		if library < 0 && !isOf(f, plumbing) {
			library = i
		}
		if own == 0 && i > 0 && packageOf(all[i-1].Function) == "database/sql" && packageOf(f.Function) == "github.com/baldur-go/baldur" {
			own = i
		}
		if start < 0 && !isOf(f, plumbing, libraries, c.skip) {
			start = i
		}
	}
	if start < 0 { // a goroutine of a library's own
		start = library
	}
	if start < 0 { // or of ours: a quorum's
		start = own
	}
	for _, f := range all[start:] {
		if f.Function != "runtime.goexit" {
			info.frames = append(info.frames, Frame{f.Function, f.File, f.Line})
		}
	}
	return info
}

// isOf tells whether a frame is of a package in one of the lists.
func isOf(f stack.Frame, lists ...[]string) bool {
	if strings.HasSuffix(f.File, "_test.go") {
		return false // a package's own tests are an application of it
	}
	pkg := packageOf(f.Function)
	for _, list := range lists {
		for _, p := range list {
			if pkg == p || strings.HasSuffix(p, "/") && strings.HasPrefix(pkg, p) {
				return true
			}
		}
	}
	return false
}

// packageOf returns the import path in a function's full name, in which the dots
// of the path's last element are escaped: "gopkg.in/yaml%2ev3.(*T).F".
func packageOf(function string) string {
	slash := strings.LastIndexByte(function, '/') + 1
	if dot := strings.IndexByte(function[slash:], '.'); dot >= 0 {
		return strings.ReplaceAll(function[:slash+dot], "%2e", ".")
	}
	return function
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

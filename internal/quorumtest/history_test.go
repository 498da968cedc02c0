//go:build linux

package quorumtest

// history is what is known of a run.
type history struct {
	beliefs []belief // one for each epoch and client
	events  []told
	commits []commit // in the order of their commits
	found   problems // what was seen meanwhile
}

// told is an event with the client that told it.
type told struct {
	client string
	event
}

// belief is a told belief: it was held from From to To at least; at an instant
// between them, and nowhere for sure, if From is not before To.
type belief told

// commit is a row of nemesis_commit.
type commit struct {
	no      int64
	kind    string // grant or write
	epoch   int64
	leaseID string // of a grant
	client  string // of a write
	n       int64  // of a write
}

// auditSchema records the takeovers and the guarded writes in the order of their
// commits. Numbers from a sequence are not in that order: two transactions can
// draw them in the one and commit in the other. Here a transaction draws its
// number in a deferred trigger, which runs when it commits, and under a lock that
// it keeps until its commit is visible to all: so that whoever draws the next one
// does it after that. The lock is the last one that a transaction takes, so it
// brings no deadlock. Clocks are not asked: the server's is stepped. The functions
// are right whatever role and search_path a session has.
const auditSchema = `
CREATE SEQUENCE public.nemesis_no;
CREATE TABLE public.nemesis_commit (no bigint PRIMARY KEY, kind text NOT NULL, epoch bigint NOT NULL, lease_id text, client text, n bigint);
CREATE TABLE public.nemesis_write (client text, n bigint, epoch bigint NOT NULL, PRIMARY KEY (client, n));

CREATE FUNCTION public.nemesis_grant() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$ BEGIN
	PERFORM pg_advisory_xact_lock(4711);
	INSERT INTO public.nemesis_commit (no, kind, epoch, lease_id) VALUES (nextval('public.nemesis_no'), 'grant', NEW.epoch, NEW.lease_id);
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER nemesis_grant AFTER UPDATE ON public.baldur_lease DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
	WHEN (OLD.epoch <> NEW.epoch OR OLD.lease_id <> NEW.lease_id OR OLD.lease_id IS NULL AND NEW.lease_id IS NOT NULL) EXECUTE FUNCTION public.nemesis_grant();

CREATE FUNCTION public.nemesis_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$ BEGIN
	PERFORM pg_advisory_xact_lock(4711);
	INSERT INTO public.nemesis_commit (no, kind, epoch, client, n) VALUES (nextval('public.nemesis_no'), 'write', NEW.epoch, NEW.client, NEW.n);
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER nemesis_write AFTER INSERT ON public.nemesis_write DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.nemesis_write();
`

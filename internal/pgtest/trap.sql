-- A schema whose functions, operators, types and relations are named like those of
-- pg_catalog and all raise an error. The functions are trigger_in, which is written
-- in C and raises whatever it is called with: so each has the types of the one that
-- it copies, "any" and internal included.
SET client_min_messages = error;
CREATE SCHEMA trap;
DO $do$
DECLARE
	f record; o record; t record; made int := 0;
	kinds constant text[] := ARRAY['int4', 'numeric'];
	literal text; arguments text; i int; l text; r text;
BEGIN
	-- Functions and aggregates, as they are.
	FOR f IN SELECT p.oid, p.proname, p.proretset, p.pronargs, p.pronargdefaults, p.provariadic, p.prorettype,
			pg_get_function_identity_arguments(p.oid) AS arguments, string_to_array(p.proargtypes::text, ' ')::oid[] AS types
		FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace
	LOOP
		arguments := (SELECT coalesce(string_agg(CASE WHEN f.provariadic <> 0 AND n = f.pronargs THEN 'VARIADIC ' ELSE '' END || format_type(a, NULL), ', ' ORDER BY n), '')
			FROM unnest(f.types) WITH ORDINALITY AS x(a, n));
		BEGIN
			EXECUTE format('CREATE FUNCTION trap.%I(%s) RETURNS %s %s LANGUAGE internal AS ''trigger_in''',
				f.proname, arguments, CASE WHEN f.proretset THEN 'SETOF' ELSE '' END, format_type(f.prorettype, NULL));
			made := made + 1;
		EXCEPTION WHEN OTHERS THEN NULL; -- what cannot be copied
		END;
		-- Fewer arguments, where the last ones have defaults.
		FOR i IN 1..f.pronargdefaults LOOP
			BEGIN
				EXECUTE format('CREATE FUNCTION trap.%I(%s) RETURNS text LANGUAGE internal AS ''trigger_in''', f.proname,
					(SELECT coalesce(string_agg(format_type(a, NULL), ', ' ORDER BY n), '') FROM unnest(f.types[:f.pronargs - i]) WITH ORDINALITY AS x(a, n)));
			EXCEPTION WHEN OTHERS THEN NULL;
			END;
		END LOOP;
		-- What a literal matches better: 42 is an int4, 0.5 a numeric.
		FOREACH literal IN ARRAY kinds LOOP
			CONTINUE WHEN f.provariadic <> 0 OR NOT f.types && '{int8,float8,float4,numeric,oid,xid8,int2}'::regtype[]::oid[];
			BEGIN
				EXECUTE format('CREATE FUNCTION trap.%I(%s) RETURNS text LANGUAGE internal AS ''trigger_in''', f.proname,
					(SELECT string_agg(CASE WHEN a = ANY ('{int8,float8,float4,numeric,oid,xid8,int2}'::regtype[]::oid[]) THEN literal ELSE format_type(a, NULL) END, ', ' ORDER BY n)
						FROM unnest(f.types) WITH ORDINALITY AS x(a, n)));
			EXCEPTION WHEN OTHERS THEN NULL;
			END;
		END LOOP;
	END LOOP;
	IF made < 2500 THEN
		RAISE EXCEPTION 'only % functions copied', made;
	END IF;

	-- Operators, with the types as they are, and with those of literals.
	made := 0;
	FOR o IN SELECT DISTINCT p.oprname, p.oprresult, p.oprleft, p.oprright, x.l, x.r FROM pg_operator p,
			LATERAL (SELECT p.oprleft AS l, p.oprright AS r
				UNION SELECT k::regtype, p.oprright FROM unnest(kinds) k WHERE p.oprleft = ANY ('{int8,float8,float4,numeric,oid,int2,int4}'::regtype[]::oid[])
				UNION SELECT p.oprleft, k::regtype FROM unnest(kinds) k WHERE p.oprright = ANY ('{int8,float8,float4,numeric,oid,int2,int4}'::regtype[]::oid[])) x
		WHERE p.oprnamespace = 'pg_catalog'::regnamespace AND p.oprcode <> 0
	LOOP
		made := made + 1;
		l := CASE WHEN o.l <> 0 THEN format_type(o.l, NULL) END;
		r := format_type(o.r, NULL);
		BEGIN
			EXECUTE format('CREATE FUNCTION trap.operator_%s(%s) RETURNS %s LANGUAGE internal AS ''trigger_in''', made, concat_ws(', ', l, r), format_type(o.oprresult, NULL));
			EXECUTE format('CREATE OPERATOR trap.%s (%s RIGHTARG = %s, FUNCTION = trap.operator_%s)', o.oprname, 'LEFTARG = ' || l || ', ', r, made);
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
	IF (SELECT count(*) FROM pg_operator WHERE oprnamespace = 'trap'::regnamespace) < 750 THEN
		RAISE EXCEPTION 'too few operators copied';
	END IF;

	FOR t IN SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'p', 'r', 'm') AND typname !~ '^_' AND typname NOT LIKE '"%' LOOP
		EXECUTE format('CREATE TYPE trap.%I AS (trap pg_catalog.int4)', t.typname);
	END LOOP;
	FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v') LOOP
		EXECUTE format('CREATE TABLE trap.%I ()', t.relname);
	END LOOP;
END $do$;
GRANT USAGE ON SCHEMA trap TO PUBLIC;

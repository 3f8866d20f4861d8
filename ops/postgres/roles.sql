-- The roles of PostgreSQL, each with the rights that it needs and no other. Knows the tables of every release up to this
-- one; holds no password: `ALTER ROLE cancel_worker PASSWORD '...'`, or `\password cancel_worker` in psql.
--
--   cancel_owner     owns the tables; `cancel-worker migrate` runs as it, and nothing else does
--   cancel_worker    the worker: no DDL, no change of what was asked for, of an endpoint's address, secret or wishes, or of an
--                    act in `audit`; it removes an endpoint whose receiver answers 410
--   cancel_operator  the commands that people run: also what a worker may not change; no DDL
--   cancel_reader    dashboards and reports: the views, and tables without documents, audit, tokens, secrets, and texts
--
-- Run it in the ledger's database before the first `migrate`, as a superuser (on a managed server: as who owns the
-- database and may make roles), and again after each `migrate`, as a superuser or as cancel_owner: a table of a new release is nobody's before. As often as you like: it takes away what is
-- too much, also what somebody has granted by hand, and is one transaction. It needs nothing of psql.
--
-- `audit` takes new rows and gives none back: no role has UPDATE, DELETE or TRUNCATE there, and a trigger refuses them to
-- the owner too. Two changes pass, because the law may ask for them: a reason becomes 'redacted' (`redact`, of which
-- cancel_operator has the right), an actor becomes 'erased' (the owner alone). Whoever owns the table can still drop the
-- trigger, and a superuser can do all: give these two to nobody who works with the ledger, and ship the server's log of
-- DDL (`log_statement = ddl`) to another machine.
DO $roles$
DECLARE
    names constant text[] := ARRAY['cancel_owner', 'cancel_worker', 'cancel_operator', 'cancel_reader'];
    -- They have no reason to know of new kinds of objects: what is not named below is not granted.
    people constant text[] := names[2:];
    -- A managed server has no superuser for its customers, but one who may make roles, and owns the database.
    privileged constant boolean := (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user);
    name text;
    found record;
    columns text;
BEGIN
    PERFORM set_config('lock_timeout', '5s', true);  -- the work goes before

    -- ---- the roles, the schema, and whose the tables are
    FOREACH name IN ARRAY names LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
    END LOOP;
    FOR found IN SELECT rolname FROM pg_roles
        WHERE rolname = ANY (names) AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
    LOOP
        RAISE EXCEPTION '% is a superuser, or may make roles or databases: no right would bind it', found.rolname
            USING HINT = 'Let another role be that one (docs/operate.md, Roles), and run this file again.';
    END LOOP;
    IF privileged THEN
        EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
        REVOKE CREATE ON SCHEMA public FROM PUBLIC;
        GRANT USAGE, CREATE ON SCHEMA public TO cancel_owner;
        GRANT USAGE ON SCHEMA public TO cancel_worker, cancel_operator, cancel_reader;
        FOREACH name IN ARRAY names LOOP
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
            -- No name is looked for where somebody else could have put one.
            EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path = public', name, current_database());
            -- A server that logs statements, or slow ones, would log documents and tokens as their parameters.
            BEGIN
                EXECUTE format('ALTER ROLE %I IN DATABASE %I SET log_parameter_max_length = 0',
                    name, current_database());
            EXCEPTION WHEN insufficient_privilege THEN
                RAISE NOTICE 'Set log_parameter_max_length = 0 for the server: only a superuser may for %', name;
            END;
        END LOOP;
        -- What an earlier release has made as another role.
        FOR found IN SELECT c.relname, c.relkind FROM pg_class c
            WHERE c.relnamespace = 'public'::regnamespace AND pg_get_userbyid(c.relowner) <> 'cancel_owner'
                AND c.relkind IN ('r', 'p', 'v') AND pg_has_role(current_user, c.relowner, 'USAGE')
                AND c.relname = ANY (ARRAY['alembic_version', 'connections', 'cancellations', 'documents', 'attempts',
                    'events', 'refunds', 'cursors', 'endpoints', 'deliveries', 'delivery_tries', 'dead_letters', 'audit',
                    'freshness', 'producers', 'cancellation_outcomes_v1', 'attempts_v1', 'connections_v1'])
        LOOP
            EXECUTE format('ALTER %s public.%I OWNER TO cancel_owner',
                CASE found.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, found.relname);
        END LOOP;
    END IF;

    FOR found IN SELECT c.relname FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname IN ('cancellations', 'audit', 'producers')
            AND NOT pg_has_role(current_user, c.relowner, 'USAGE')
    LOOP
        RAISE EXCEPTION 'the table % belongs to another role', found.relname
            USING HINT = 'Run this file as a superuser, or as cancel_owner.';
    END LOOP;

    -- ---- audit takes new rows only
    IF to_regclass('public.audit') IS NOT NULL THEN
        IF to_regproc('public.cancel_audit_only_grows') IS NULL THEN
            CREATE FUNCTION public.cancel_audit_only_grows() RETURNS trigger LANGUAGE plpgsql
                SET search_path = pg_catalog, pg_temp AS $trigger$
            BEGIN
                IF TG_OP = 'UPDATE' THEN
                    IF (NEW.reason IS NOT DISTINCT FROM OLD.reason OR NEW.reason = 'redacted')
                        AND (NEW.actor = OLD.actor OR NEW.actor = 'erased')
                        AND to_jsonb(NEW) - 'reason' - 'actor' = to_jsonb(OLD) - 'reason' - 'actor'
                    THEN
                        RETURN NEW;
                    END IF;
                END IF;
                RAISE EXCEPTION 'audit takes new rows only: % is refused to every role (ops/postgres/roles.sql)', TG_OP
                    USING ERRCODE = 'insufficient_privilege';
            END
            $trigger$;
            ALTER FUNCTION public.cancel_audit_only_grows() OWNER TO cancel_owner;
            REVOKE ALL ON FUNCTION public.cancel_audit_only_grows() FROM PUBLIC;
        END IF;
        IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'public.audit'::regclass AND tgname = 'audit_only_grows')
        THEN
            CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE ON public.audit
                FOR EACH ROW EXECUTE FUNCTION public.cancel_audit_only_grows();
            CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON public.audit
                FOR EACH STATEMENT EXECUTE FUNCTION public.cancel_audit_only_grows();
            -- Also where `session_replication_role` says that triggers rest.
            ALTER TABLE public.audit ENABLE ALWAYS TRIGGER audit_only_grows;
            ALTER TABLE public.audit ENABLE ALWAYS TRIGGER audit_is_not_emptied;
        END IF;
    END IF;

    -- ---- who may do what: first nothing, then this list
    FOR found IN SELECT c.oid::regclass AS object, c.relkind FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
            AND pg_has_role(current_user, c.relowner, 'USAGE')
    LOOP
        FOREACH name IN ARRAY people LOOP
            EXECUTE format('REVOKE ALL ON %s %s FROM %I',
                CASE found.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, found.object, name);
        END LOOP;
    END LOOP;
    FOR found IN
        SELECT * FROM (VALUES
        -- role, table, right, columns: all of them, only these, or (-) all but these
        ('cancel_worker', 'alembic_version', 'SELECT', ''),
        ('cancel_worker', 'connections', 'SELECT', ''),
        ('cancel_worker', 'connections', 'INSERT', 'id name access_token hold_reason held_at created_at updated_at'),
        ('cancel_worker', 'connections', 'UPDATE', 'name access_token hold_reason held_at probe_at updated_at'),
        ('cancel_worker', 'cancellations', 'SELECT', ''),
        ('cancel_worker', 'cancellations', 'INSERT', ''),
        ('cancel_worker', 'cancellations', 'UPDATE', '- id connection_id order_id idempotency_key priority send_by'
            ' requested_by reason metadata requested_at received_at batch traceparent generation'),
        ('cancel_worker', 'cancellations', 'DELETE', ''),
        ('cancel_worker', 'documents', 'SELECT', ''),
        ('cancel_worker', 'documents', 'INSERT', ''),
        ('cancel_worker', 'documents', 'UPDATE', '- cancellation_id'),
        ('cancel_worker', 'documents', 'DELETE', ''),
        ('cancel_worker', 'attempts', 'SELECT', ''),
        ('cancel_worker', 'attempts', 'INSERT', ''),
        ('cancel_worker', 'attempts', 'UPDATE', '- cancellation_id number kind'),
        ('cancel_worker', 'attempts', 'DELETE', ''),
        ('cancel_worker', 'events', 'SELECT', ''),
        ('cancel_worker', 'events', 'INSERT', ''),
        ('cancel_worker', 'events', 'UPDATE', 'publish_at place'),
        ('cancel_worker', 'events', 'DELETE', ''),
        ('cancel_worker', 'refunds', 'SELECT', ''),
        ('cancel_worker', 'refunds', 'INSERT', ''),
        ('cancel_worker', 'refunds', 'UPDATE', 'told proofs changed_at'),
        ('cancel_worker', 'refunds', 'DELETE', ''),
        ('cancel_worker', 'cursors', 'SELECT', ''),
        ('cancel_worker', 'cursors', 'INSERT', ''),
        ('cancel_worker', 'cursors', 'UPDATE', 'place moved_at'),
        ('cancel_worker', 'endpoints', 'SELECT', ''),
        ('cancel_worker', 'endpoints', 'UPDATE',
            'state place failures failing_since counted_at told retry_at lease_owner lease_expires_at'),
        ('cancel_worker', 'endpoints', 'DELETE', ''),  -- one whose receiver answers that it is gone
        ('cancel_worker', 'deliveries', 'SELECT', ''),
        ('cancel_worker', 'deliveries', 'INSERT', ''),
        ('cancel_worker', 'deliveries', 'UPDATE', 'due_at tries'),
        ('cancel_worker', 'deliveries', 'DELETE', ''),
        ('cancel_worker', 'delivery_tries', 'SELECT', ''),
        ('cancel_worker', 'delivery_tries', 'INSERT', ''),
        ('cancel_worker', 'delivery_tries', 'DELETE', ''),
        ('cancel_worker', 'dead_letters', 'SELECT', '- raw'),
        ('cancel_worker', 'dead_letters', 'INSERT', ''),
        ('cancel_worker', 'dead_letters', 'UPDATE', 'requeued_at'),  -- to lock what it deletes
        ('cancel_worker', 'dead_letters', 'DELETE', ''),
        ('cancel_worker', 'freshness', 'SELECT', ''),
        ('cancel_worker', 'freshness', 'INSERT', ''),
        ('cancel_worker', 'freshness', 'UPDATE', ''),
        ('cancel_worker', 'producers', 'SELECT', ''),
        ('cancel_worker', 'audit', 'INSERT', ''),

        ('cancel_operator', 'alembic_version', 'SELECT', ''),
        ('cancel_operator', 'connections', 'SELECT', ''),
        ('cancel_operator', 'connections', 'INSERT', ''),
        ('cancel_operator', 'connections', 'UPDATE', '- id created_at'),
        ('cancel_operator', 'cancellations', 'SELECT', ''),
        ('cancel_operator', 'cancellations', 'UPDATE', '- id connection_id order_id idempotency_key received_at batch'),
        ('cancel_operator', 'cancellations', 'DELETE', ''),
        ('cancel_operator', 'documents', 'SELECT', ''),
        ('cancel_operator', 'documents', 'UPDATE', 'kept_at'),  -- to lock what it deletes
        ('cancel_operator', 'documents', 'DELETE', ''),
        ('cancel_operator', 'attempts', 'SELECT', ''),
        ('cancel_operator', 'attempts', 'UPDATE', 'error'),
        ('cancel_operator', 'attempts', 'DELETE', ''),
        ('cancel_operator', 'events', 'SELECT', ''),
        ('cancel_operator', 'events', 'INSERT', ''),
        ('cancel_operator', 'events', 'UPDATE', 'payload place'),
        ('cancel_operator', 'events', 'DELETE', ''),
        ('cancel_operator', 'refunds', 'SELECT', ''),
        ('cancel_operator', 'refunds', 'INSERT', ''),
        ('cancel_operator', 'refunds', 'UPDATE', 'told proofs changed_at'),
        ('cancel_operator', 'refunds', 'DELETE', ''),
        ('cancel_operator', 'cursors', 'SELECT', ''),
        ('cancel_operator', 'cursors', 'INSERT', ''),
        ('cancel_operator', 'cursors', 'UPDATE', 'place moved_at'),
        ('cancel_operator', 'endpoints', 'SELECT', ''),
        ('cancel_operator', 'endpoints', 'INSERT', ''),
        ('cancel_operator', 'endpoints', 'UPDATE', '- id url created_at'),
        ('cancel_operator', 'endpoints', 'DELETE', ''),
        ('cancel_operator', 'deliveries', 'SELECT', ''),
        ('cancel_operator', 'deliveries', 'INSERT', ''),
        ('cancel_operator', 'deliveries', 'UPDATE', 'due_at tries'),
        ('cancel_operator', 'deliveries', 'DELETE', ''),
        ('cancel_operator', 'delivery_tries', 'SELECT', ''),
        ('cancel_operator', 'delivery_tries', 'DELETE', ''),
        ('cancel_operator', 'dead_letters', 'SELECT', ''),
        ('cancel_operator', 'dead_letters', 'UPDATE', 'raw error requeued_at'),
        ('cancel_operator', 'dead_letters', 'DELETE', ''),
        ('cancel_operator', 'freshness', 'SELECT', ''),
        ('cancel_operator', 'freshness', 'INSERT', ''),
        ('cancel_operator', 'freshness', 'UPDATE', ''),
        ('cancel_operator', 'producers', 'SELECT', ''),
        ('cancel_operator', 'producers', 'INSERT', ''),
        ('cancel_operator', 'producers', 'UPDATE', ''),
        ('cancel_operator', 'producers', 'DELETE', ''),
        ('cancel_operator', 'audit', 'SELECT', ''),
        ('cancel_operator', 'audit', 'INSERT', ''),
        ('cancel_operator', 'audit', 'UPDATE', 'reason'),  -- to one word, says the trigger

        ('cancel_reader', 'cancellation_outcomes_v1', 'SELECT', ''),
        ('cancel_reader', 'attempts_v1', 'SELECT', ''),
        ('cancel_reader', 'connections_v1', 'SELECT', ''),
        ('cancel_reader', 'alembic_version', 'SELECT', ''),
        ('cancel_reader', 'connections', 'SELECT', '- access_token owner'),
        ('cancel_reader', 'cancellations', 'SELECT',
            '- requested_by reason metadata outcome_message order_snapshot unused_fields'),
        ('cancel_reader', 'attempts', 'SELECT', '- error'),
        ('cancel_reader', 'events', 'SELECT', '- payload'),
        ('cancel_reader', 'refunds', 'SELECT', ''),
        ('cancel_reader', 'cursors', 'SELECT', ''),
        ('cancel_reader', 'endpoints', 'SELECT', '- url secret old_secret old_secret_until'),
        ('cancel_reader', 'deliveries', 'SELECT', ''),
        ('cancel_reader', 'delivery_tries', 'SELECT', ''),
        ('cancel_reader', 'dead_letters', 'SELECT', '- raw error'),
        ('cancel_reader', 'freshness', 'SELECT', ''),
        ('cancel_reader', 'producers', 'SELECT', '')
        ) AS rights (grantee, object, verb, stated)
        WHERE to_regclass('public.' || object) IS NOT NULL  -- a table of a later migration: the next run grants it
    LOOP
        SELECT string_agg(quote_ident(attname), ', ') INTO columns FROM pg_attribute
            WHERE attrelid = to_regclass('public.' || found.object) AND attnum > 0 AND NOT attisdropped
                AND (attname = ANY (string_to_array(found.stated, ' '))) <> (found.stated LIKE '- %');
        EXECUTE format('GRANT %s ON public.%I TO %I',
            found.verb || CASE WHEN found.stated = '' THEN '' ELSE format(' (%s)', columns) END,
            found.object, found.grantee);
    END LOOP;
    -- A row's number comes from a sequence.
    FOR found IN
        SELECT grantee, pg_get_serial_sequence('public.' || object, 'id') AS sequence
        FROM unnest(ARRAY['cancel_worker', 'cancel_operator']) AS grantee,
            unnest(ARRAY['events', 'audit', 'dead_letters', 'delivery_tries']) AS object
        WHERE to_regclass('public.' || object) IS NOT NULL
            AND (grantee = 'cancel_worker' OR object IN ('events', 'audit'))
    LOOP
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I', found.sequence, found.grantee);
    END LOOP;
END
$roles$;

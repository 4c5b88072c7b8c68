-- A database as nas-hpc 0.1.0 made it: an application, and a job that waits for its parent.
BEGIN TRANSACTION;
CREATE TABLE apps (
	name TEXT NOT NULL, 
	executable TEXT NOT NULL, 
	description TEXT NOT NULL, 
	restartable BOOLEAN NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "apps" VALUES('AMBS','/env/bin/python -m nas_hpc.apps.ambs','asks a forest',1);
CREATE TABLE attempts (
	job INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	lease TEXT NOT NULL, 
	nodes TEXT NOT NULL, 
	cores TEXT NOT NULL, 
	gpus TEXT NOT NULL, 
	claimed DOUBLE NOT NULL, 
	outcome TEXT, 
	objective DOUBLE, 
	metadata TEXT, 
	reason TEXT, 
	return_code INTEGER, 
	start DOUBLE, 
	"end" DOUBLE, 
	tail TEXT, 
	PRIMARY KEY (job, number), 
	FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
);
CREATE TABLE counters (
	name TEXT NOT NULL, 
	value INTEGER NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "counters" VALUES('jobs',2);
INSERT INTO "counters" VALUES('events',2);
CREATE TABLE edges (
	parent INTEGER NOT NULL, 
	child INTEGER NOT NULL, 
	PRIMARY KEY (parent, child), 
	FOREIGN KEY(parent) REFERENCES jobs (number), 
	FOREIGN KEY(child) REFERENCES jobs (number) ON DELETE CASCADE
);
INSERT INTO "edges" VALUES(1,2);
CREATE TABLE events (
	id INTEGER NOT NULL, 
	job INTEGER NOT NULL, 
	time DOUBLE NOT NULL, 
	old TEXT NOT NULL, 
	new TEXT NOT NULL, 
	actor TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	message TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "events" VALUES(1,1,1.79525527821851253514e+09,'CREATED','READY','command',0,'');
INSERT INTO "events" VALUES(2,2,1.79525527821851253514e+09,'CREATED','AWAITING_PARENTS','command',0,'');
CREATE TABLE jobs (
	number INTEGER NOT NULL, 
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	workflow TEXT NOT NULL, 
	application TEXT, 
	creator TEXT, 
	seq INTEGER, 
	state TEXT NOT NULL, 
	lease TEXT, 
	attempt INTEGER NOT NULL, 
	unmet INTEGER NOT NULL, 
	created DOUBLE NOT NULL, 
	final_event INTEGER, 
	body TEXT NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (creator, seq), 
	UNIQUE (id)
);
INSERT INTO "jobs" VALUES(1,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','first','W','AMBS',NULL,NULL,'READY',NULL,0,0,1790000000.0,NULL,'{}');
INSERT INTO "jobs" VALUES(2,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','second','W','AMBS',NULL,NULL,'AWAITING_PARENTS',NULL,0,1,1790000001.0,NULL,'{"parents":["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],"data":{"k":1}}');
CREATE TABLE leases (
	number INTEGER NOT NULL, 
	id TEXT NOT NULL, 
	host TEXT NOT NULL, 
	boot_id TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	start_time DOUBLE NOT NULL, 
	workflow TEXT NOT NULL, 
	expires DOUBLE NOT NULL, 
	ended DOUBLE NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (id)
);
CREATE TABLE meta (
	"key" TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema','1');
CREATE INDEX jobs_lease ON jobs (lease) WHERE lease IS NOT NULL;
CREATE INDEX jobs_name ON jobs (name);
CREATE INDEX jobs_final ON jobs (creator, final_event) WHERE final_event IS NOT NULL;
CREATE INDEX jobs_application ON jobs (application) WHERE application IS NOT NULL;
CREATE INDEX jobs_state ON jobs (state, workflow);
CREATE INDEX ix_events_job ON events (job);
CREATE INDEX ix_edges_child ON edges (child);
CREATE TRIGGER events_keep BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_stay BEFORE DELETE ON events WHEN EXISTS (SELECT 1 FROM jobs WHERE number = OLD.job) BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
COMMIT;

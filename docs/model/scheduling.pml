/*
 * Promotion, lease and fencing: two submissions, two schedulers, two workers, a sweep, a person who
 * cancels, and a wire that loses and repeats. README.md says what is modelled and what not.
 *
 * One atomic block is one transaction that holds its tenant's row. A submission and a pass of a
 * scheduler take several steps: what they read may be old when they write.
 *
 * Switches that break one rule each, to show that the checks would see it:
 *   NO_FENCE        a word is believed whatever its attempt
 *   NO_START_CHECK  a message starts its job, whatever became of it
 *   NO_PASS_LOCK    two schedulers decide at once (still safe: the constraints stand)
 *   NO_CONSTRAINT   the database accepts every write of a scheduler
 *   NO_TENANT_LOCK  numbers are given out before the tenant's row is held
 *   NO_HEAD_RULE    a lane's next job is raised while another is active
 *   NO_UPSTREAM     dependencies are ignored
 *   NO_REPUSH       a lost message is never pushed again
 *   NO_EXPIRY       a dead worker keeps its lease
 *   NO_WAKE         the end of a job raises nothing
 *   DEAF_CANCEL     a success is accepted although the job's cancel was answered
 */
#ifndef SLOTS
#define SLOTS 1            /* leases at once */
#endif
#ifndef CRASHES
#define CRASHES 0          /* a worker dies: in hand, or in the middle of a job */
#endif
#ifndef STOPS
#define STOPS 0            /* a live worker is stopped past its lease */
#endif
#ifndef FAILURES
#define FAILURES 0         /* a body fails and is tried again */
#endif
#ifndef LOSSES
#define LOSSES 0           /* the wire loses a message (or Redis is emptied) */
#endif
#ifndef REPEATS
#define REPEATS 0          /* the wire delivers a message twice */
#endif
#ifndef CANCELS
#define CANCELS 0
#endif

#define JOBS 3
#define BRANCHES 2
#define WORKERS 2
#define NOBODY 255
#define BRANCH(j) ((j) / 2)      /* jobs 0 and 1 share a lane, from two submissions; 2 has its own */
#define VICTIM 0                 /* whose cancel may be asked for: job 2 waits for it */

/* states, ordered as in jobs/states.py */
#define UNBORN 0
#define PENDING 1
#define READY 2
#define QUEUED 3
#define RUNNING 4
#define SUCCEEDED 5
#define CANCELLED 6
#define IS_HEAD(j) (state[j] >= READY && state[j] <= RUNNING)
#define IS_ACTIVE(j) (state[j] == QUEUED || state[j] == RUNNING)
#define IS_OVER(j) (state[j] >= SUCCEEDED)
#define ALL_OVER (IS_OVER(0) && IS_OVER(1) && IS_OVER(2))
#define ACTIVE_IN(b) ((b) == 0 -> (IS_ACTIVE(0) + IS_ACTIVE(1)) : IS_ACTIVE(2))

/* --- the rows ------------------------------------------------------------------------------ */
byte state[JOBS];
byte sequence[JOBS];
byte attempt[JOBS];              /* the fence: rises at each promotion, nowhere else */
byte lease[JOBS];                /* attempt of the lease, 0 for none */
bool fresh[JOBS];                /* renewed in time */
bool cancel_asked[JOBS];
byte next_sequence = 1;
byte leases = 0;
bool tenant_held = false;
bool pass_held = false;

chan wire = [2] of { byte, byte };   /* (job, attempt) */

/* --- what only the checks know ------------------------------------------------------------- */
byte holder[JOBS] = NOBODY;      /* the worker whose start was accepted last */
byte begun[JOBS];                /* the attempt that started last */
byte completed[JOBS];
byte first_word[BRANCHES];       /* highest sequence that began in a lane */
byte crashes = CRASHES, stops = STOPS, failures = FAILURES;
byte losses = LOSSES, repeats = REPEATS, cancels = CANCELS;

inline check() {
    assert(leases <= SLOTS);
    assert(leases == (lease[0] > 0) + (lease[1] > 0) + (lease[2] > 0));
    assert(ACTIVE_IN(0) <= 1 && ACTIVE_IN(1) <= 1);
    assert((lease[0] > 0) == IS_ACTIVE(0));
    assert((lease[1] > 0) == IS_ACTIVE(1));
    assert((lease[2] > 0) == IS_ACTIVE(2));
    assert(completed[0] <= 1 && completed[1] <= 1 && completed[2] <= 1);
}

/* --- pieces of transactions ---------------------------------------------------------------- */
#ifdef NO_HEAD_RULE
#define LANE_IDLE(b) true
#else
#define LANE_IDLE(b) ((b) == 0 -> (!IS_HEAD(0) && !IS_HEAD(1)) : !IS_HEAD(2))
#endif
#ifdef NO_UPSTREAM
#define UPSTREAM_DONE(j) true
#else
#define UPSTREAM_DONE(j) ((j) != 2 || state[0] == SUCCEEDED)
#endif

/* The first waiting job of an idle lane becomes READY; one that waits for upstream holds its lane. */
inline raise(b) {
    if
    :: LANE_IDLE(b) ->
        first = NOBODY;
        if
        :: (b) == 1 && state[2] == PENDING -> first = 2
        :: (b) == 0 && state[0] == PENDING &&
            !(state[1] == PENDING && sequence[1] < sequence[0]) -> first = 0
        :: (b) == 0 && state[1] == PENDING &&
            !(state[0] == PENDING && sequence[0] < sequence[1]) -> first = 1
        :: else
        fi;
        if
        :: first != NOBODY && UPSTREAM_DONE(first) -> state[first] = READY
        :: else
        fi;
        first = 0
    :: else
    fi
}

inline drop_lease(j) {
    if
    :: lease[j] > 0 -> lease[j] = 0; fresh[j] = false; leases--
    :: else
    fi
}

inline end_cancelled(j) {
    drop_lease(j);
    state[j] = CANCELLED;
    if
    :: (j) == 0 && (state[2] == PENDING || state[2] == READY) -> state[2] = CANCELLED
    :: else
    fi;
    raise(BRANCH(j))
}

/* An attempt ended without success: back to the head of its lane, or cancelled as was asked. */
inline give_up(j) {
    if
    :: cancel_asked[j] -> end_cancelled(j)
    :: else -> drop_lease(j); state[j] = READY
    fi
}

#ifdef NO_FENCE
#define MINE(j, a) true
#else
#define MINE(j, a) (attempt[j] == (a))
#endif
#ifdef NO_START_CHECK
#define MAY_START(j, a) (lease[j] > 0)
#else
#define MAY_START(j, a) (state[j] == QUEUED && MINE(j, a))
#endif

/* --- submissions: a number under the tenant's row, then the rows, visible at commit --------- */
proctype submission(byte j; byte below) {
    byte first = 0;
    atomic {
#ifndef NO_TENANT_LOCK
        !tenant_held -> tenant_held = true;
#endif
        sequence[j] = next_sequence;
        next_sequence++;
        if
        :: below != NOBODY -> sequence[below] = next_sequence; next_sequence++
        :: else
        fi
    };
    atomic {
#ifdef NO_TENANT_LOCK
        !tenant_held;
#endif
        state[j] = PENDING;
        if
        :: below != NOBODY -> state[below] = PENDING; raise(BRANCH(below))
        :: else
        fi;
        raise(BRANCH(j));
        tenant_held = false;
        check()
    }
}

/* --- a scheduler: reads a candidate and the room, then writes ------------------------------- */
#ifdef NO_CONSTRAINT
#define ALLOWED(j) true
#else
#define ALLOWED(j) (leases < SLOTS && ACTIVE_IN(BRANCH(j)) == 0)
#endif

#ifdef NO_PASS_LOCK
#define MAY_DECIDE true
#else
#define MAY_DECIDE (!pass_held)
#endif
#define SOMETHING_READY (state[0] == READY || state[1] == READY || state[2] == READY)

proctype scheduler() {
    byte chosen = 0, seen = 0;
    do
    :: ALL_OVER -> break
    :: atomic {
        !ALL_OVER && MAY_DECIDE && leases < SLOTS && SOMETHING_READY ->
        pass_held = true;
        if
        :: state[0] == READY -> chosen = 0
        :: state[1] == READY -> chosen = 1
        :: state[2] == READY -> chosen = 2
        fi;
        seen = attempt[chosen]
       };
       atomic {
        !tenant_held;
        if
        :: state[chosen] == READY && attempt[chosen] == seen && ALLOWED(chosen) ->
            state[chosen] = QUEUED;
            attempt[chosen]++;
            lease[chosen] = attempt[chosen];
            fresh[chosen] = true;
            leases++;
            assert(chosen != 2 || state[0] == SUCCEEDED)
        :: else
        fi;
        pass_held = false;
        chosen = 0;
        seen = 0;
        check()
       }
    od
}

/* --- the sweep: pushes what is not on the wire, ends what was not renewed ------------------- */
#define NEEDS_PUSH(j) (state[j] == QUEUED && !wire??[eval(j), eval(attempt[j])])
#ifdef NO_EXPIRY
#define EXPIRED(j) false
#else
#define EXPIRED(j) (lease[j] > 0 && !fresh[j] && !tenant_held)
#endif
#ifdef NO_REPUSH
bool pushed[JOBS * 8];
#define MAY_PUSH(j) (NEEDS_PUSH(j) && !pushed[(j) * 8 + attempt[j]])
#define NOTE_PUSH(j) pushed[(j) * 8 + attempt[j]] = true
#else
#define MAY_PUSH(j) NEEDS_PUSH(j)
#define NOTE_PUSH(j) skip
#endif

proctype sweep() {
    byte first = 0;
    do
    :: ALL_OVER -> break
    :: atomic { nfull(wire) && MAY_PUSH(0) -> NOTE_PUSH(0); wire!0,attempt[0] }
    :: atomic { nfull(wire) && MAY_PUSH(1) -> NOTE_PUSH(1); wire!1,attempt[1] }
    :: atomic { nfull(wire) && MAY_PUSH(2) -> NOTE_PUSH(2); wire!2,attempt[2] }
    :: atomic { EXPIRED(0) -> give_up(0); check() }
    :: atomic { EXPIRED(1) -> give_up(1); check() }
    :: atomic { EXPIRED(2) -> give_up(2); check() }
    od
}

/* --- a worker: takes a message, starts, works, and reports, perhaps long after its lease ended */
proctype worker(byte me) {
    byte j = 0, a = 0, first = 0;
idle:
    j = 0; a = 0;
    do
    :: ALL_OVER -> goto gone
    :: wire?j,a -> break
    :: atomic { repeats > 0 && nempty(wire) -> wire?<j,a>; repeats--; break }   /* and left there */
    od;
    if
    :: atomic { crashes > 0 -> crashes--; goto idle }                /* died with it in hand */
    :: skip
    fi;
    atomic {
        !tenant_held;
        if
        :: MAY_START(j, a) ->
            assert(a == attempt[j] && a > begun[j]);                 /* once an attempt */
            assert(sequence[j] >= first_word[BRANCH(j)]);            /* in order of the lane */
            first_word[BRANCH(j)] = sequence[j];
            state[j] = RUNNING;
            begun[j] = a;
            holder[j] = me;
            fresh[j] = true;
            check()
        :: else -> goto idle
        fi
    };
    do
    :: atomic { lease[j] == a && !fresh[j] -> assert(holder[j] == me); fresh[j] = true }
    :: atomic { lease[j] != a -> goto idle }                         /* a renewal told it to stop */
    :: atomic { stops > 0 && lease[j] == a && fresh[j] -> stops--; fresh[j] = false }
    :: atomic {
        crashes > 0 ->
        crashes--;
        if
        :: lease[j] == a -> fresh[j] = false                         /* nobody renews it any more */
        :: else
        fi;
        goto idle
       }
    :: atomic {                                                      /* the body failed */
        failures > 0 && !tenant_held ->
        failures--;
        if
        :: IS_ACTIVE(j) && MINE(j, a) -> assert(holder[j] == me && a == attempt[j]); give_up(j)
        :: else
        fi;
        check();
        goto idle
       }
    :: atomic {                                                      /* it succeeded */
        !tenant_held ->
        if
#ifdef DEAF_CANCEL
        :: state[j] == RUNNING && MINE(j, a) ->
#else
        :: state[j] == RUNNING && MINE(j, a) && cancel_asked[j] -> end_cancelled(j)
        :: state[j] == RUNNING && MINE(j, a) && !cancel_asked[j] ->
#endif
            assert(holder[j] == me && a == attempt[j]);              /* a late word changes nothing */
            assert(!cancel_asked[j]);
            drop_lease(j);
            state[j] = SUCCEEDED;
            completed[j]++;
#ifndef NO_WAKE
            raise(BRANCH(j));
            if
            :: j == 0 -> raise(1)
            :: else
            fi
#endif
        :: else
        fi;
        check();
        goto idle
       }
    od;
gone:
    skip
}

/* --- what goes wrong elsewhere, and a person ------------------------------------------------ */
proctype trouble() {
    byte j = 0, a = 0;
    do
    :: ALL_OVER || losses == 0 -> break
    :: atomic { losses > 0 && nempty(wire) -> wire?j,a; losses--; j = 0; a = 0 }
    od
}

proctype person() {
    byte first = 0;
    if
    :: skip                                                          /* changes nothing */
    :: atomic {
        cancels > 0 && !tenant_held && state[VICTIM] != UNBORN && !IS_OVER(VICTIM) ->
        cancels--;
        cancel_asked[VICTIM] = true;
        if
        :: state[VICTIM] != RUNNING -> end_cancelled(VICTIM)
        :: else
        fi;
        check()
       }
    :: ALL_OVER
    fi
}

init {
    atomic {
        run submission(0, 2);
        run submission(1, NOBODY);
        run scheduler();
        run scheduler();
        run sweep();
        run worker(0);
        run worker(1);
        run trouble();
        run person()
    }
}

#ifdef LIVENESS
ltl drains { <> ALL_OVER }
#endif

/* The whole shim in a network namespace of its own: sockets, the event thread and its spool, probing, sealing.
 * Flows are made and ended over netlink, so no packet is sent; their counters are zero. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libnetfilter_conntrack/libnetfilter_conntrack.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include "messages.h"
#include "meter.h"

enum { MANY = 60000 }; /* their events are more than the spool takes */

static const struct meter_interval INTERVAL = {.start = 1, .end = 2};
static struct mnl_socket *requests;
static uint8_t sealed_bytes[1 << 20];

static bool write_setting(const char *path, const char *value)
{
	int file = open(path, O_WRONLY);
	bool done = file >= 0 && write(file, value, strlen(value)) == (ssize_t)strlen(value);
	if (file >= 0)
		close(file);
	return done;
}

static void request(uint16_t type, uint16_t flags, uint32_t number, bool whole_table)
{
	_Alignas(8) uint8_t buffer[1024];
	struct nlmsghdr *message = mnl_nlmsg_put_header(buffer);
	message->nlmsg_type = (uint16_t)(NFNL_SUBSYS_CTNETLINK << 8 | type);
	message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	struct nfgenmsg *header = mnl_nlmsg_put_extra_header(message, sizeof *header);
	header->nfgen_family = AF_INET;
	if (!whole_table) {
		struct nf_conntrack *flow = nfct_new();
		CHECK(flow != NULL);
		nfct_set_attr_u8(flow, ATTR_ORIG_L3PROTO, AF_INET);
		nfct_set_attr_u32(flow, ATTR_ORIG_IPV4_SRC, htonl(0xc0000200 + (number >> 16)));
		nfct_set_attr_u32(flow, ATTR_ORIG_IPV4_DST, htonl(0xc6336401));
		nfct_set_attr_u8(flow, ATTR_ORIG_L4PROTO, IPPROTO_UDP);
		nfct_set_attr_u16(flow, ATTR_ORIG_PORT_SRC, htons((uint16_t)number));
		nfct_set_attr_u16(flow, ATTR_ORIG_PORT_DST, htons(443));
		nfct_setobjopt(flow, NFCT_SOPT_SETUP_REPLY);
		nfct_set_attr_u32(flow, ATTR_TIMEOUT, 1000);
		CHECK(nfct_nlmsg_build(message, flow) == 0);
		nfct_destroy(flow);
	}
	CHECK(mnl_socket_sendto(requests, message, message->nlmsg_len) > 0);
	CHECK(mnl_socket_recvfrom(requests, buffer, sizeof buffer) > 0);
	const struct nlmsghdr *answer = (const struct nlmsghdr *)(const void *)buffer;
	CHECK(answer->nlmsg_type == NLMSG_ERROR && ((const struct nlmsgerr *)NLMSG_DATA(answer))->error == 0);
}

static void make_flows(uint32_t count)
{
	for (uint32_t number = 0; number < count; number++)
		request(IPCTNL_MSG_CT_NEW, NLM_F_CREATE | NLM_F_EXCL, number, false);
}

static void end_all_flows(void)
{
	request(IPCTNL_MSG_CT_DELETE, 0, 0, true);
}

static struct meter *open_meter(void)
{
	const struct listening listening = {
		.watchdog = WATCHDOG_PROGRAM, .buffer_bytes = 1 << 20, .patience_milliseconds = 5000,
	};
	int error;
	const char *step;
	enum meter_state_fault fault;
	const struct meter_config config = {
		.directory = -1,
		.epoch = (const uint8_t *)"0123456789abcdef",
		.first_sequence = 1,
	};
	struct meter *meter = meter_listen(&listening, &error, &step);
	CHECK(meter != NULL && meter_start(meter, &config, &step, &fault) == 0);
	return meter;
}

static struct meter_read_result read_once(struct meter *meter)
{
	struct meter_read_result result;
	struct meter_sealed sealed;
	CHECK(meter_read(meter, &result) == 0);
	CHECK(meter_seal(meter, &INTERVAL, sealed_bytes, sizeof sealed_bytes, &sealed) == 0);
	return result;
}

static struct meter_totals totals_of(struct meter *meter)
{
	struct meter_totals totals;
	meter_totals_get(meter, &totals);
	return totals;
}

static void test_flows_come_and_go(void)
{
	struct meter *meter = open_meter();
	CHECK(read_once(meter).flows == 0);
	make_flows(1000);
	CHECK(read_once(meter).flows == 1000 && totals_of(meter).flows == 1000);
	end_all_flows();
	CHECK(read_once(meter).events == 1000 && totals_of(meter).flows == 0);
	for (int i = 0; i < 3; i++)
		(void)read_once(meter);
	CHECK(totals_of(meter).entries == 0 && totals_of(meter).malformed == 0);
	meter_close(meter);
}

static void test_a_full_spool_is_booked_though_no_one_reads(void)
{
	struct meter *meter = open_meter();
	(void)read_once(meter);
	make_flows(MANY);
	end_all_flows();
	for (int i = 0; i < 1000 && totals_of(meter).destroy_events == 0; i++)
		usleep(10000);
	CHECK(totals_of(meter).destroy_events > 0);
	for (int i = 0; i < 1000 && totals_of(meter).destroy_events < MANY; i++) {
		(void)read_once(meter);
		usleep(10000);
	}
	/* An emulated machine's listener falls behind, and then the kernel sends events again. */
	bool may_lag = getenv("METER_LISTENER_MAY_LAG") != NULL;
	CHECK(totals_of(meter).destroy_events == MANY || (may_lag && totals_of(meter).destroy_events > MANY));
	CHECK(totals_of(meter).flows == 0);
	CHECK(totals_of(meter).vanished == 0);
	meter_close(meter);
}

static void test_flows_that_end_unheard_are_asked_for(void)
{
	struct meter *meter = open_meter();
	(void)read_once(meter);
	make_flows(10);
	(void)read_once(meter);
	CHECK(write_setting("/proc/sys/net/netfilter/nf_conntrack_events", "0"));
	end_all_flows();
	CHECK(write_setting("/proc/sys/net/netfilter/nf_conntrack_events", "1"));
	uint64_t heard = totals_of(meter).destroy_events;
	for (int i = 0; i < 6; i++)
		(void)read_once(meter);
	heard = totals_of(meter).destroy_events - heard;
	CHECK(totals_of(meter).vanished + heard == 10 && totals_of(meter).entries == 0);
	meter_close(meter);
}

static void *read_many(void *argument)
{
	struct meter_read_result result;
	int error = 0;
	while (!error) {
		error = meter_read(argument, &result);
		usleep(200); /* a mutex is not fair: who never pauses may keep all others out, for as long as it likes */
	}
	CHECK(error == -ECANCELED);
	return NULL;
}

static void test_an_abort_ends_a_running_read(void)
{
	struct meter *meter = open_meter();
	make_flows(1000);
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, read_many, meter) == 0);
	for (int i = 0; i < 100; i++) {
		struct meter_sealed sealed;
		CHECK(meter_seal(meter, &INTERVAL, sealed_bytes, sizeof sealed_bytes, &sealed) == 0);
		(void)totals_of(meter);
		usleep(100);
	}
	meter_abort(meter);
	pthread_join(thread, NULL);
	meter_close(meter);
	end_all_flows();
}

int main(void)
{
	if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) {
		puts("meter: skipped, no network namespace can be made here");
		return getenv("CI") != NULL;
	}
	requests = mnl_socket_open(NETLINK_NETFILTER);
	CHECK(requests && mnl_socket_bind(requests, 0, MNL_SOCKET_AUTOPID) == 0);
	end_all_flows(); /* There are none: the first request has the kernel load what has these settings. */
	CHECK(write_setting("/proc/sys/net/netfilter/nf_conntrack_acct", "1"));
	CHECK(write_setting("/proc/sys/net/netfilter/nf_conntrack_events", "1"));
	test_flows_come_and_go();
	test_a_full_spool_is_booked_though_no_one_reads();
	test_flows_that_end_unheard_are_asked_for();
	test_an_abort_ends_a_running_read();
	mnl_socket_close(requests);
	puts("meter: ok");
	return 0;
}

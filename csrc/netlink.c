#define _GNU_SOURCE
#include "netlink.h"

#include <errno.h>
#include <libnetfilter_conntrack/libnetfilter_conntrack.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "message.h"

enum {
	ANSWER_SECONDS = 10, /* the kernel answers at once, or never: then the request has failed */
	FULL_BYTES = 2048,   /* a datagram with less room than that may have had none for another flow */
};

int requests_open(struct requests *requests)
{
	if (!requests->buffer) {
		requests->buffer = malloc(DUMP_BUFFER_BYTES);
		if (!requests->buffer)
			return -ENOMEM;
	}
	requests->socket = mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC);
	if (!requests->socket)
		return -errno;
	const struct timeval timeout = {.tv_sec = ANSWER_SECONDS};
	if (mnl_socket_bind(requests->socket, 0, MNL_SOCKET_AUTOPID) < 0 ||
	    setsockopt(mnl_socket_get_fd(requests->socket), SOL_SOCKET, SO_RCVTIMEO, &timeout,
		       sizeof timeout) < 0) {
		int error = -errno;
		mnl_socket_close(requests->socket);
		requests->socket = NULL;
		return error;
	}
	requests->dirty = false;
	return 0;
}

void requests_close(struct requests *requests)
{
	if (requests->socket)
		mnl_socket_close(requests->socket);
	free(requests->buffer);
	*requests = (struct requests){0};
}

static int send_request(struct requests *requests, struct nlmsghdr *message)
{
	if (requests->dirty) {
		mnl_socket_close(requests->socket);
		requests->socket = NULL;
	}
	if (!requests->socket) {
		int error = requests_open(requests);
		if (error)
			return error;
	}
	message->nlmsg_seq = ++requests->sequence;
	if (mnl_socket_sendto(requests->socket, message, message->nlmsg_len) < 0)
		return -errno;
	requests->dirty = true;
	return 0;
}

/* One datagram of the answer. */
static int receive(struct requests *requests, size_t *length)
{
	for (;;) {
		ssize_t received = recv(mnl_socket_get_fd(requests->socket), requests->buffer,
					DUMP_BUFFER_BYTES, MSG_TRUNC);
		if (received >= 0) {
			*length = (size_t)received;
			return *length > DUMP_BUFFER_BYTES ? -EMSGSIZE : 0;
		}
		if (errno == EAGAIN || errno == EWOULDBLOCK)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

/* What nlmsgerr says; -EPROTO when it is cut short. */
static int error_of(const struct nlmsghdr *message)
{
	int error;
	if (message->nlmsg_len < NLMSG_HDRLEN + sizeof error)
		return -EPROTO;
	memcpy(&error, NLMSG_DATA(message), sizeof error);
	return error;
}

static bool is_flow(const struct nlmsghdr *message)
{
	return message->nlmsg_type == ((NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_NEW);
}

static struct nlmsghdr *start_request(uint8_t *buffer, uint8_t type, uint8_t family, uint16_t flags)
{
	struct nlmsghdr *message = mnl_nlmsg_put_header(buffer);
	message->nlmsg_type = (uint16_t)(NFNL_SUBSYS_CTNETLINK << 8 | type);
	message->nlmsg_flags = NLM_F_REQUEST | flags;
	struct nfgenmsg *header = mnl_nlmsg_put_extra_header(message, sizeof *header);
	header->nfgen_family = family;
	header->version = NFNETLINK_V0;
	header->res_id = 0;
	return message;
}

static int dump(struct requests *requests, uint8_t type, const atomic_bool *stop, netlink_flow flow,
		void *context, struct dump_size *size)
{
	_Alignas(struct nlmsghdr) uint8_t request[128];
	*size = (struct dump_size){0};
	int error = send_request(requests, start_request(request, type, AF_UNSPEC, NLM_F_DUMP));
	bool consistent = true;
	while (!error) {
		if (atomic_load_explicit(stop, memory_order_relaxed))
			return -ECANCELED;
		size_t length;
		error = receive(requests, &length);
		if (error)
			return error;
		size->bytes += length;
		const struct nlmsghdr *message;
		for (size_t position = 0; (message = message_next(requests->buffer, length, &position));) {
			if (message->nlmsg_seq != requests->sequence)
				continue;
			if (message->nlmsg_flags & NLM_F_DUMP_INTR)
				consistent = false;
			if (is_flow(message)) {
				size->messages++;
				size->last = length;
				if (flow && (error = flow(context, message)))
					return error;
			} else if (message->nlmsg_type == NLMSG_DONE) {
				requests->dirty = false;
				error = error_of(message);
				return error < 0 ? error : consistent ? 0 : -EINTR;
			} else if (message->nlmsg_type == NLMSG_ERROR && (error = error_of(message))) {
				requests->dirty = false;
				return error;
			}
		}
	}
	return error;
}

int requests_dump(struct requests *requests, const atomic_bool *stop, netlink_flow flow, void *context,
		  struct dump_size *size)
{
	return dump(requests, IPCTNL_MSG_CT_GET, stop, flow, context, size);
}

/* The kernel fills a datagram up to the first flow that has no room in it, and begins the next one at that flow. Of the
 * list of dying flows it finds nothing more from 5.19 on when that flow's event was delivered in between
 * (ctnetlink_dump_dying): the dump then ends as if the list did. A list that is whole ends anywhere; one that was cut
 * ends behind a full datagram: less than the largest flow (1 KiB) and what an skb takes for itself short of what the
 * reader offers or, where memory is short, of a page, which counts for 8 KiB at most (netlink_dump). */
static bool may_be_cut(size_t last)
{
	static const size_t rooms[] = {4096, 8192, DUMP_BUFFER_BYTES};
	for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++)
		if (last > rooms[i] - FULL_BYTES && last <= rooms[i])
			return true;
	return false;
}

int requests_dump_dying(struct requests *requests, const atomic_bool *stop, netlink_flow flow, void *context,
			bool *whole)
{
	struct dump_size size;
	int error = dump(requests, IPCTNL_MSG_CT_GET_DYING, stop, flow, context, &size);
	*whole = !error && !may_be_cut(size.last);
	return error;
}

static void set_addresses(struct nf_conntrack *tuple, const struct flow_key *key)
{
	if (key->family == FAMILY_IPV4) {
		nfct_set_attr_u8(tuple, ATTR_ORIG_L3PROTO, AF_INET);
		nfct_set_attr(tuple, ATTR_ORIG_IPV4_SRC, key->source);
		nfct_set_attr(tuple, ATTR_ORIG_IPV4_DST, key->destination);
	} else {
		nfct_set_attr_u8(tuple, ATTR_ORIG_L3PROTO, AF_INET6);
		nfct_set_attr(tuple, ATTR_ORIG_IPV6_SRC, key->source);
		nfct_set_attr(tuple, ATTR_ORIG_IPV6_DST, key->destination);
	}
}

static struct nf_conntrack *tuple_of(const struct flow_key *key)
{
	struct nf_conntrack *tuple = nfct_new();
	if (!tuple)
		return NULL;
	set_addresses(tuple, key);
	nfct_set_attr_u8(tuple, ATTR_ORIG_L4PROTO, key->protocol);
	if (key->protocol == IPPROTO_ICMP || key->protocol == IPPROTO_ICMPV6) {
		nfct_set_attr_u8(tuple, ATTR_ICMP_TYPE, (uint8_t)(key->destination_port >> 8));
		nfct_set_attr_u8(tuple, ATTR_ICMP_CODE, (uint8_t)key->destination_port);
		nfct_set_attr_u16(tuple, ATTR_ICMP_ID, htons(key->source_port));
	} else {
		nfct_set_attr_u16(tuple, ATTR_ORIG_PORT_SRC, htons(key->source_port));
		nfct_set_attr_u16(tuple, ATTR_ORIG_PORT_DST, htons(key->destination_port));
	}
	if (key->zone_direction == ZONE_ORIGINAL)
		nfct_set_attr_u16(tuple, ATTR_ORIG_ZONE, key->zone);
	else if (key->zone != 0)
		nfct_set_attr_u16(tuple, ATTR_ZONE, key->zone);
	return tuple;
}

int requests_get(struct requests *requests, const struct flow_key *key, netlink_flow flow, void *context)
{
	_Alignas(struct nlmsghdr) uint8_t request[1024];
	struct nf_conntrack *tuple = tuple_of(key);
	if (!tuple)
		return -ENOMEM;
	uint8_t family = key->family == FAMILY_IPV4 ? AF_INET : AF_INET6;
	struct nlmsghdr *message = start_request(request, IPCTNL_MSG_CT_GET, family, 0);
	int built = nfct_nlmsg_build(message, tuple);
	nfct_destroy(tuple);
	if (built < 0)
		return -EINVAL;
	int error = send_request(requests, message);
	size_t length;
	if (error || (error = receive(requests, &length)))
		return error;
	requests->dirty = false;
	size_t position = 0;
	const struct nlmsghdr *answer = message_next(requests->buffer, length, &position);
	if (!answer || answer->nlmsg_seq != requests->sequence)
		return -EPROTO;
	if (answer->nlmsg_type == NLMSG_ERROR)
		return error_of(answer);
	return is_flow(answer) ? flow(context, answer) : -EPROTO;
}

int events_socket_open(struct mnl_socket **opened, uint32_t buffer_bytes, const char **step)
{
	*step = "open the event socket";
	struct mnl_socket *socket = mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (!socket)
		return -errno;
	int descriptor = mnl_socket_get_fd(socket), on = 1, bytes = (int)buffer_bytes;
	int group = NFNLGRP_CONNTRACK_DESTROY;
	/* Without the privilege to pass net.core.rmem_max the queue is as large as may be. */
	if (setsockopt(descriptor, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
		(void)setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
	*step = "ask for lossless events";
	if (mnl_socket_setsockopt(socket, NETLINK_BROADCAST_ERROR, &on, sizeof on) < 0 ||
	    mnl_socket_setsockopt(socket, NETLINK_NO_ENOBUFS, &on, sizeof on) < 0)
		goto failed;
	*step = "listen to the kernel's events";
	if (mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0 ||
	    mnl_socket_setsockopt(socket, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
		goto failed;
	*opened = socket;
	return 0;
failed:;
	int error = -errno;
	mnl_socket_close(socket);
	return error;
}

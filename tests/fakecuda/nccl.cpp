// NCCL without a GPU: a `libnccl.so.2` that moves data between processes on the fake driver. Rank 0 listens, the others
// connect to it, and it passes everything on. As in NCCL, an exchange is work in a stream, so it can be captured; nothing
// moves until somebody waits for the stream, and a rank that is gone keeps the others waiting for ever.
//
// It knows the exchanges that the program makes: all-gather, broadcast, and a group of one send to and one receive from
// every rank, whose buffers are contiguous. It refuses others as invalid usage.
#include <dlfcn.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

enum Result { SUCCESS = 0, CUDA_ERROR = 1, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
enum Kind : int32_t { ALL_GATHER, BROADCAST, ALL_TO_ALL };
static const char* const NAMES[] = {"all-gather", "broadcast", "all-to-all"};

// With it a rank introduces itself to rank 0.
constexpr int32_t MAGIC = 0x4e43434c;

struct Id {
    char text[128]; // HOST:PORT
};
struct Comm {
    int rank, size;
    std::vector<int> peers; // sockets: rank 0's to every other rank, another rank's to rank 0
};
// One exchange, kept as long as the process because a graph may repeat it.
struct Exchange {
    Comm* comm;
    Kind kind;
    const char* from;
    char* to;
    uint64_t bytes; // of a part
    int root;
};

// ---- sockets ---------------------------------------------------------------------------------------------

[[noreturn]] static void wait_for_ever() {
    while (true) pause();
}
static void send_all(int socket, const void* data, size_t bytes) {
    for (const char* at = (const char*)data; bytes;) {
        const ssize_t n = send(socket, at, bytes, MSG_NOSIGNAL);
        if (n <= 0) wait_for_ever();
        at += n, bytes -= n;
    }
}
static void receive_all(int socket, void* data, size_t bytes) {
    for (char* at = (char*)data; bytes;) {
        const ssize_t n = recv(socket, at, bytes, 0);
        if (n <= 0) wait_for_ever();
        at += n, bytes -= n;
    }
}

// The socket that rank 0 listens on; opened by `ncclGetUniqueId` where that chooses the port.
static int listener = -1;

static bool resolve(const std::string& text, sockaddr_in& address) {
    const size_t colon = text.rfind(':');
    if (colon == std::string::npos) return false;
    addrinfo hints{}, *found = nullptr;
    hints.ai_family = AF_INET;
    if (getaddrinfo(text.substr(0, colon).c_str(), text.substr(colon + 1).c_str(), &hints, &found)) return false;
    memcpy(&address, found->ai_addr, sizeof address);
    freeaddrinfo(found);
    return true;
}
static bool listen_at(sockaddr_in& address) {
    const int on = 1;
    socklen_t length = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    return !bind(listener, (sockaddr*)&address, length) && !listen(listener, 64) &&
           !getsockname(listener, (sockaddr*)&address, &length);
}

// ---- the exchange ----------------------------------------------------------------------------------------

struct Header {
    int32_t kind, root;
    uint64_t bytes;
};

// What rank 0 does with the bytes that it has of all ranks: what each of them gets.
static std::vector<std::string> passed_on(const Exchange& e, const std::vector<std::string>& sent) {
    std::vector<std::string> out(sent.size());
    for (size_t to = 0; to < sent.size(); to++) {
        if (e.kind == BROADCAST) out[to] = sent[e.root];
        for (size_t from = 0; e.kind != BROADCAST && from < sent.size(); from++)
            out[to] += e.kind == ALL_GATHER ? sent[from] : sent[from].substr(to * e.bytes, e.bytes);
    }
    return out;
}

// Runs when the device reaches the exchange.
static void exchange(void* data) {
    const Exchange& e = *(Exchange*)data;
    const int size = e.comm->size;
    const Header own{e.kind, e.root, e.bytes};
    const uint64_t outgoing = e.kind == ALL_TO_ALL                             ? e.bytes * size
                              : e.kind == ALL_GATHER || e.comm->rank == e.root ? e.bytes
                                                                               : 0;
    const uint64_t incoming = e.kind == BROADCAST ? e.bytes : e.bytes * size;
    if (e.comm->rank) {
        send_all(e.comm->peers[0], &own, sizeof own);
        send_all(e.comm->peers[0], e.from, outgoing);
        receive_all(e.comm->peers[0], e.to, incoming);
        return;
    }
    std::vector<std::string> sent = {std::string(e.from, outgoing)};
    for (int rank = 1; rank < size; rank++) {
        Header other;
        receive_all(e.comm->peers[rank - 1], &other, sizeof other);
        if (other.kind != own.kind || other.bytes != own.bytes || other.root != own.root) {
            fprintf(stderr, "fakenccl: rank %d begins %s of %llu bytes, rank 0 %s of %llu\n", rank,
                    NAMES[other.kind], (unsigned long long)other.bytes, NAMES[own.kind], (unsigned long long)own.bytes);
            abort();
        }
        const bool sends = e.kind != BROADCAST || rank == e.root;
        std::string bytes(sends ? (e.kind == ALL_TO_ALL ? e.bytes * size : e.bytes) : 0, '\0');
        receive_all(e.comm->peers[rank - 1], &bytes[0], bytes.size());
        sent.push_back(std::move(bytes));
    }
    const std::vector<std::string> out = passed_on(e, sent);
    for (int rank = 1; rank < size; rank++) send_all(e.comm->peers[rank - 1], out[rank].data(), out[rank].size());
    memcpy(e.to, out[0].data(), out[0].size());
}

// Puts an exchange into a stream of the driver that the program has loaded. NCCL keeps the exchanges of all streams in the
// order of the calls. Here they happen in the order in which somebody waits for the streams, and a rank with another order
// than rank 0 ends the process.
static Result enqueue(Exchange e, void* stream) {
    using Launch = int (*)(void*, void (*)(void*), void*);
    static void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    static const Launch launch = driver ? (Launch)dlsym(driver, "cuLaunchHostFunc") : nullptr;
    if (!launch) return SYSTEM_ERROR;
    return launch(stream, exchange, new Exchange(e)) ? CUDA_ERROR : SUCCESS;
}

// FAKENCCL_FAIL="ncclAllGather@3": the third call fails.
static bool fails(const std::string& name) {
    static std::map<std::string, int> calls;
    const char* text = getenv("FAKENCCL_FAIL");
    return name + "@" + std::to_string(++calls[name]) == (text ? text : "");
}

// ---- NCCL's functions --------------------------------------------------------------------------------------

API Result ncclGetVersion(int* version) {
    const char* text = getenv("FAKENCCL_VERSION");
    *version = text ? atoi(text) : 22304;
    return SUCCESS;
}
API const char* ncclGetErrorString(Result e) {
    switch (e) {
        case SUCCESS: return "no error";
        case CUDA_ERROR: return "unhandled cuda error";
        case SYSTEM_ERROR: return "unhandled system error";
        case INVALID_ARGUMENT: return "invalid argument";
        case INVALID_USAGE: return "invalid usage";
    }
    return "unknown result code";
}
API Result ncclGetUniqueId(Id* id) {
    if (fails(__func__)) return SYSTEM_ERROR;
    memset(id, 0, sizeof *id);
    if (const char* place = getenv("NCCL_COMM_ID")) {
        snprintf(id->text, sizeof id->text, "%s", place);
        return SUCCESS;
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (!listen_at(address)) return SYSTEM_ERROR;
    snprintf(id->text, sizeof id->text, "127.0.0.1:%d", ntohs(address.sin_port));
    return SUCCESS;
}
API Result ncclCommInitRank(Comm** made, int size, Id id, int rank) {
    if (fails(__func__)) return SYSTEM_ERROR;
    if (rank < 0 || rank >= size) return INVALID_ARGUMENT;
    sockaddr_in address{};
    if (!resolve(id.text, address)) return INVALID_ARGUMENT;
    Comm* comm = new Comm{rank, size, {}};
    if (rank == 0) {
        if (listener < 0 && !listen_at(address)) return SYSTEM_ERROR;
        comm->peers.resize(size - 1);
        for (int i = 1; i < size; i++) {
            int32_t other;
            const int socket = accept(listener, nullptr, nullptr);
            receive_all(socket, &other, sizeof other);
            other ^= MAGIC;
            if (other < 1 || other >= size) return SYSTEM_ERROR; // a stranger
            comm->peers[other - 1] = socket;
        }
    } else {
        while (true) {
            const int s = socket(AF_INET, SOCK_STREAM, 0);
            if (!connect(s, (sockaddr*)&address, sizeof address)) {
                comm->peers.push_back(s);
                break;
            }
            close(s); // rank 0 does not listen yet
            usleep(10000);
        }
        const int32_t own = rank ^ MAGIC;
        send_all(comm->peers[0], &own, sizeof own);
    }
    *made = comm;
    return SUCCESS;
}
API Result ncclAllGather(const void* from, void* to, size_t count, int type, Comm* comm, void* stream) {
    if (fails(__func__)) return CUDA_ERROR;
    if (type != 1) return INVALID_ARGUMENT;
    return enqueue({comm, ALL_GATHER, (const char*)from, (char*)to, count, 0}, stream);
}
API Result ncclBroadcast(const void* from, void* to, size_t count, int type, int root, Comm* comm, void* stream) {
    if (fails(__func__)) return CUDA_ERROR;
    if (type != 1 || root < 0 || root >= comm->size) return INVALID_ARGUMENT;
    return enqueue({comm, BROADCAST, (const char*)from, (char*)to, count, root}, stream);
}

// The sends and receives of an open group, by peer.
static std::map<int, std::pair<const char*, size_t>> sends, receives;
static bool is_open;
static Comm* of_group;
static void* stream_of_group;

API Result ncclGroupStart() {
    is_open = true;
    return SUCCESS;
}
API Result ncclSend(const void* from, size_t count, int type, int peer, Comm* comm, void* stream) {
    if (!is_open || type != 1) return INVALID_USAGE;
    sends[peer] = {(const char*)from, count};
    of_group = comm, stream_of_group = stream;
    return SUCCESS;
}
API Result ncclRecv(void* to, size_t count, int type, int peer, Comm*, void*) {
    if (!is_open || type != 1) return INVALID_USAGE;
    receives[peer] = {(const char*)to, count};
    return SUCCESS;
}
API Result ncclGroupEnd() {
    if (fails(__func__)) return CUDA_ERROR;
    if (!is_open || sends.empty() || receives.empty()) return INVALID_USAGE;
    const auto [from, part] = sends[0];
    const char* to = receives[0].first;
    bool is_known = (int)sends.size() == of_group->size && (int)receives.size() == of_group->size;
    for (int peer = 0; is_known && peer < of_group->size; peer++)
        is_known = sends[peer] == std::make_pair(from + peer * part, part) &&
                   receives[peer] == std::make_pair(to + peer * part, part);
    const Exchange e{of_group, ALL_TO_ALL, from, (char*)to, part, 0};
    sends.clear(), receives.clear(), is_open = false;
    return is_known ? enqueue(e, stream_of_group) : INVALID_USAGE;
}

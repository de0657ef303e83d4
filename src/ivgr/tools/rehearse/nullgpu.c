/* A GPU that does nothing: stands in for libcudart and cuBLAS under LD_PRELOAD, so that PyTorch's own CUDA
 * path (dispatch, autograd engine, streams, caching allocator, FSDP2) runs on a machine without one.
 *
 * Memory is address space of which nothing is touched; kernels and copies are counted, not made. Integers
 * are kept true by host_integers.py, in the same address space. null_gpu.py compiles this file.
 */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#undef cudaGetDeviceProperties
#define SMALL (1UL << 16)
#define ZEROED (1UL << 26)

static __thread int current;
EXPORT uint64_t nullgpu_launches, nullgpu_syncs, nullgpu_d2h, nullgpu_h2d, nullgpu_gemms, nullgpu_h2d_bytes, nullgpu_mallocs;
static uint64_t used[64];

static uint64_t total(void) { char *s = getenv("NULLGPU_GIB"); return (uint64_t)((s ? atof(s) : 79.1) * (1UL << 30)); }
static int devices(void) { char *s = getenv("NULLGPU_COUNT"); return s ? atoi(s) : 1; }

struct block { char *at; size_t size; int device; } blocks[1 << 16];
static int count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct block *find(const void *p) {
  for (int i = count - 1; i >= 0; i--)
    if (blocks[i].at && (char *)p >= blocks[i].at && (char *)p < blocks[i].at + blocks[i].size) return &blocks[i];
  return NULL;
}

EXPORT cudaError_t cudaGetDeviceCount(int *n) { *n = devices(); return 0; }
EXPORT cudaError_t cudaGetDevice(int *d) { *d = current; return 0; }
EXPORT cudaError_t cudaSetDevice(int d) { current = d; return 0; }
EXPORT cudaError_t cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
EXPORT cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
EXPORT cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *t = total(); *f = *t - used[current]; return 0; }
EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H100 80GB HBM3 (null)");
  p->totalGlobalMem = total(); p->sharedMemPerBlock = 49152; p->regsPerBlock = 65536; p->warpSize = 32;
  p->maxThreadsPerBlock = 1024; p->maxThreadsDim[0] = 1024; p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = 65535; p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536; p->major = 9; p->minor = 0; p->textureAlignment = 512; p->texturePitchAlignment = 32;
  p->multiProcessorCount = 132; p->integrated = 0; p->canMapHostMemory = 1; p->concurrentKernels = 1;
  p->pciBusID = d; p->unifiedAddressing = 1; p->memoryBusWidth = 5120; p->l2CacheSize = 50 << 20;
  p->maxThreadsPerMultiProcessor = 2048; p->streamPrioritiesSupported = 1; p->sharedMemPerMultiprocessor = 233472;
  p->regsPerMultiprocessor = 65536; p->managedMemory = 1; p->cooperativeLaunch = 1; p->sharedMemPerBlockOptin = 232448;
  p->maxBlocksPerMultiProcessor = 32; p->reservedSharedMemPerBlock = 1024; p->asyncEngineCount = 3;
  return 0;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
  switch (a) {
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrL2CacheSize: *v = 50 << 20; break;
    case cudaDevAttrClockRate: *v = 1980000; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    default: *v = 0;
  }
  return 0;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *l, int *h) { *l = 0; *h = -5; return 0; }
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *v, int a, int b) { *v = 0; return 0; }
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:%02x:00.0", d); return 0; }

EXPORT cudaError_t cudaMalloc(void **p, size_t n) {
  pthread_mutex_lock(&lock);
  nullgpu_mallocs++;
  if (used[current] + n > total()) { pthread_mutex_unlock(&lock); *p = NULL; return cudaErrorMemoryAllocation; }
  size_t room = (n + 4095) & ~4095UL;
  void *at = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) { pthread_mutex_unlock(&lock); return cudaErrorMemoryAllocation; }
  madvise(at, room, MADV_NOHUGEPAGE);
  int i = 0;
  while (i < count && blocks[i].at) i++;
  if (i == count) count++;
  blocks[i] = (struct block){at, room, current};
  used[current] += n;
  pthread_mutex_unlock(&lock);
  *p = at;
  return 0;
}
EXPORT cudaError_t cudaFree(void *p) {
  if (!p) return 0;
  pthread_mutex_lock(&lock);
  struct block *b = find(p);
  if (b) { munmap(b->at, b->size); used[b->device] -= b->size; b->at = NULL; }
  pthread_mutex_unlock(&lock);
  return 0;
}
EXPORT cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { return posix_memalign(p, 4096, n ? n : 1) ? cudaErrorMemoryAllocation : 0; }
EXPORT cudaError_t cudaFreeHost(void *p) { free(p); return 0; }
EXPORT cudaError_t cudaHostRegister(void *p, size_t n, unsigned f) { return 0; }
EXPORT cudaError_t cudaHostUnregister(void *p) { return 0; }
EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  struct block *b = find(p);
  a->type = b ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  a->device = b ? b->device : -1; a->devicePointer = b ? (void *)p : NULL; a->hostPointer = b ? NULL : (void *)p;
  return 0;
}
static cudaError_t copy(void *d, const void *s, size_t n) {
  if (n && (!d || !s)) return cudaErrorInvalidValue; /* as the real one */
  int to = find(d) != NULL, from = find(s) != NULL;
  if (from && !to) nullgpu_d2h++;
  if (to && !from) { nullgpu_h2d++; nullgpu_h2d_bytes += n; }
  if (!from && !to) memmove(d, s, n);
  if (from && !to && n <= ZEROED) memset(d, 0, n); /* floats have no value here */
  if (!from && to && n <= SMALL) memmove(d, s, n); /* such as torch.tensor([2], device="cuda"), which no mode sees */
  return 0;
}
EXPORT cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) { nullgpu_syncs++; return copy(d, s, n); }
EXPORT cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t t) { return copy(d, s, n); }
EXPORT cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t t) { nullgpu_launches++; return 0; }
EXPORT cudaError_t cudaMemset(void *d, int v, size_t n) { return 0; }

static void *handle(void) { static uintptr_t n = 0x1000; return (void *)(n += 0x10); }
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = handle(); return 0; }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = handle(); return 0; }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = handle(); return 0; }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t s) { return 0; }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) { nullgpu_syncs++; return 0; }
EXPORT cudaError_t cudaDeviceSynchronize(void) { nullgpu_syncs++; return 0; }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) { return 0; }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return 0; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return 0; }
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) { *c = cudaStreamCaptureStatusNone; return 0; }
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id, cudaGraph_t *g,
    const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
  if (c) *c = cudaStreamCaptureStatusNone; if (id) *id = 0; if (g) *g = NULL; if (d) *d = NULL; if (n) *n = 0; return 0; }
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return 0; }
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t c, void *d, unsigned f) { return 0; }
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *d) { return 0; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = handle(); return 0; }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = handle(); return 0; }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e) { return 0; }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return 0; }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return 0; }
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) { return 0; }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) { nullgpu_syncs++; return 0; }
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }
EXPORT cudaError_t cudaGetLastError(void) { return 0; }
EXPORT cudaError_t cudaPeekAtLastError(void) { return 0; }

EXPORT cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { nullgpu_launches++; return 0; }
EXPORT cudaError_t __cudaLaunchKernel(void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { nullgpu_launches++; return 0; }
EXPORT cudaError_t __cudaGetKernel(void **k, const void *f) { *k = (void *)f; return 0; }
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { nullgpu_launches++; return 0; }
EXPORT cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return 0; }
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a); a->maxThreadsPerBlock = 1024; a->numRegs = 32; a->binaryVersion = 90; a->ptxVersion = 90;
  a->maxDynamicSharedSizeBytes = 49152; return 0; }
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) { *n = 2; return 0; }
EXPORT cudaError_t cudaGetSymbolAddress(void **p, const void *s) { static char room[4096]; *p = room; return 0; }
EXPORT cudaError_t cudaMemcpyToSymbol(const void *s, const void *f, size_t n, size_t o, enum cudaMemcpyKind k) { return 0; }

/* The driver: whatever is asked for is there and succeeds. */
static int yes(void) { return 0; }
static int state(int d, unsigned *f, int *a) { if (f) *f = 0; if (a) *a = 1; return 0; }
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *n, void **p, unsigned v, unsigned long long f, enum cudaDriverEntryPointQueryResult *r) {
  *p = strstr(n, "PrimaryCtxGetState") ? (void *)state : (void *)yes;
  if (r) *r = cudaDriverEntryPointSuccess;
  return 0;
}

/* cuBLAS */
EXPORT int cublasCreate_v2(void **h) { *h = handle(); return 0; }
EXPORT int cublasDestroy_v2(void *h) { return 0; }
EXPORT int cublasSetStream_v2(void *h, void *s) { return 0; }
EXPORT int cublasSetWorkspace_v2(void *h, void *w, size_t n) { return 0; }
EXPORT int cublasGetMathMode(void *h, int *m) { *m = 0; return 0; }
EXPORT int cublasSetMathMode(void *h, int m) { return 0; }
EXPORT int cublasGetPointerMode_v2(void *h, int *m) { *m = 0; return 0; }
EXPORT int cublasSetPointerMode_v2(void *h, int m) { return 0; }
#define GEMM(name) EXPORT int name() { nullgpu_gemms++; nullgpu_launches++; return 0; }
GEMM(cublasGemmEx) GEMM(cublasGemmStridedBatchedEx) GEMM(cublasSgemm_v2) GEMM(cublasSgemmEx) GEMM(cublasDgemm_v2)
GEMM(cublasSgemmStridedBatched) GEMM(cublasDgemmStridedBatched) GEMM(cublasSgemv_v2) GEMM(cublasLtMatmul)
GEMM(cublasSdot_v2) GEMM(cublasDotEx)
EXPORT size_t cublasLtGetVersion(void) { return 130100; }
EXPORT int cublasLtMatmulDescCreate(void **d, int c, int t) { *d = handle(); return 0; }
EXPORT int cublasLtMatmulDescDestroy(void *d) { return 0; }
EXPORT int cublasLtMatmulDescSetAttribute() { return 0; }
EXPORT int cublasLtMatrixLayoutCreate(void **d, int t, uint64_t r, uint64_t c, int64_t l) { *d = handle(); return 0; }
EXPORT int cublasLtMatrixLayoutDestroy(void *d) { return 0; }
EXPORT int cublasLtMatrixLayoutSetAttribute() { return 0; }
EXPORT int cublasLtMatmulPreferenceCreate(void **d) { *d = handle(); return 0; }
EXPORT int cublasLtMatmulPreferenceDestroy(void *d) { return 0; }
EXPORT int cublasLtMatmulPreferenceSetAttribute() { return 0; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e, void *p, int n, void *r, int *found) { memset(r, 0, 64); *found = 1; return 0; }
EXPORT int cublasSetSmCountTarget() { return 0; }

/* libcuda, for those who look symbols up in it themselves. */
EXPORT int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { return state(d, f, a); }
EXPORT int cuDeviceGet(int *d, int n) { *d = n; return 0; }
EXPORT int cuCtxGetCurrent(void **c) { *c = (void *)0x10; return 0; }
EXPORT int cuGetErrorString(int e, const char **s) { *s = "null"; return 0; }
#define YES(name) EXPORT int name() { return 0; }
YES(cuInit) YES(cuDeviceGetAttribute) YES(cuCtxSetCurrent) YES(cuCtxPushCurrent) YES(cuCtxPopCurrent) YES(cuCtxFromGreenCtx)
YES(cuMemAddressReserve) YES(cuMemRelease) YES(cuMemMap) YES(cuMemAddressFree) YES(cuMemSetAccess) YES(cuMemUnmap) YES(cuMemCreate)
YES(cuMemGetAllocationGranularity) YES(cuMemExportToShareableHandle) YES(cuMemRetainAllocationHandle) YES(cuMemsetD32Async)
YES(cuStreamWriteValue32) YES(cuMulticastAddDevice) YES(cuMulticastBindMem) YES(cuMulticastCreate) YES(cuMulticastUnbind)
YES(cuGreenCtxCreate) YES(cuGreenCtxDestroy) YES(cuGreenCtxStreamCreate) YES(cuDevSmResourceSplitByCount) YES(cuDeviceGetDevResource)
YES(cuDevResourceGenerateDesc) YES(cuLogsRegisterCallback) YES(cuLogsUnregisterCallback) YES(cuMemGetAddressRange) YES(cuMemGetAddressRange_v2)
YES(cuMemImportFromShareableHandle) YES(cuMemGetAllocationPropertiesFromHandle) YES(cuModuleGetFunction) YES(cuModuleLoadData)
YES(cuModuleLoadDataEx) YES(cuModuleUnload) YES(cuLaunchKernel) YES(cuLaunchKernelEx) YES(cuLinkCreate) YES(cuLinkAddData) YES(cuLinkComplete)
YES(cuFuncSetAttribute) YES(cuFuncGetAttribute) YES(cuFuncSetCacheConfig) YES(cuOccupancyMaxActiveBlocksPerMultiprocessor)
YES(cuTensorMapEncodeTiled) YES(cuPointerGetAttribute) YES(cuDeviceGetName) YES(cuDriverGetVersion) YES(cuGetErrorName)

import numpy as np, torch
class TranslationError(ValueError): pass
class TorchFunction:
    def __init__(s, e, leaves):
        s.leaves=list(leaves); s.slot={l.id:i for i,l in enumerate(s.leaves)}; s.e=e; s.shape=tuple(e.shape); s.c={}
    def const(s, v, like):
        k=(id(v),like.dtype,like.device)
        if k not in s.c:
            a=v.toarray() if hasattr(v,'toarray') else np.asarray(v,dtype=float)
            s.c[k]=(v,torch.as_tensor(a).to(like))
        return s.c[k][1]
    def __call__(s,*t):
        s.memo={}; r=s.ev(s.e,t); B=t[0].shape[0]
        return r.expand(B,*s.shape) if r.shape!=(B,*s.shape) else r
    def ev(s,e,t):
        if id(e) in s.memo: return s.memo[id(e)]
        r=s._ev(e,t); s.memo[id(e)]=r; return r
    def _ev(s,e,t):
        import cvxpy as cp
        n=type(e).__name__
        if hasattr(e,'id') and e.id in s.slot and not e.args: return t[s.slot[e.id]]
        like=t[0]; B=like.shape[0]
        if not e.variables() and not e.parameters():
            if not hasattr(e,'_ddnv'): e._ddnv=e.value
            v=s.const(e._ddnv,like).reshape(e.shape); return v.expand(B,*e.shape)
        a=[s.ev(x,t) for x in e.args]
        sh=(B,*e.shape)
        def sc(x): return x.reshape(B,*[1]*len(e.shape)) if x.ndim==1 and len(e.shape) else x
        if n=='AddExpression':
            r=sc(a[0])
            for x in a[1:]: r=r+sc(x)
            return r
        if n=='NegExpression': return -a[0]
        if n=='MulExpression':
            x,y=a
            if x.ndim==1 or y.ndim==1: return sc(x)*sc(y)
            xs,ys=x.ndim==2,y.ndim==2
            if xs: x=x.unsqueeze(1)
            if ys: y=y.unsqueeze(2)
            r=x@y
            if xs: r=r.squeeze(1)
            if ys: r=r.squeeze(-1)
            return r
        if n=='multiply': return sc(a[0])*sc(a[1])
        if n=='DivExpression': return sc(a[0])/sc(a[1])
        if n=='Sum':
            ax=e.axis
            if ax is None: return a[0].reshape(B,-1).sum(1).reshape(sh)
            ax=ax if isinstance(ax,tuple) else (ax,)
            return a[0].sum([x+1 if x>=0 else x for x in ax],keepdim=e.keepdims)
        if n in('Power','PowerApprox'):
            p=float(e.p.value) if hasattr(e.p,'value') else float(e.p); return a[0]**(int(p) if p==int(p) else p)
        if n=='quad_over_lin': return (a[0]**2).reshape(B,-1).sum(1)/a[1].reshape(B)
        if n=='QuadForm': return torch.einsum('bi,bij,bj->b',a[0].reshape(B,-1),a[1],a[0].reshape(B,-1))
        if n in('exp','log','sin','cos','tan','sinh','tanh','asinh','atanh','log1p','abs'): return getattr(torch,n)(a[0])
        if n=='logistic': return torch.nn.functional.softplus(a[0])
        if n=='entr': return -torch.special.xlogy(a[0],a[0])
        if n=='rel_entr': return torch.special.xlogy(sc(a[0]),sc(a[0])/sc(a[1]))
        if n=='kl_div': return torch.special.xlogy(sc(a[0]),sc(a[0])/sc(a[1]))-sc(a[0])+sc(a[1])
        if n=='index':
            k=tuple(slice(None) if x is None else x for x in e._orig_key) if isinstance(e._orig_key,tuple) else (e._orig_key,)
            def fix(x):
                return x
            return a[0][(slice(None),*[fix(x) for x in k])].reshape(sh)
        if n=='special_index':
            k=e.key if isinstance(e.key,tuple) else (e.key,)
            return a[0][(slice(None),*[torch.as_tensor(np.asarray(x)) if not isinstance(x,slice) else x for x in k])].reshape(sh)
        if n=='reshape':
            if e.order=='C': return a[0].reshape(sh)
            d=a[0].ndim-1; x=a[0].permute(0,*range(d,0,-1)) if d>1 else a[0]
            d2=len(e.shape); r=x.reshape(B,*e.shape[::-1]); return r.permute(0,*range(d2,0,-1)) if d2>1 else r
        if n=='transpose':
            d=a[0].ndim-1; ax=e.axes if getattr(e,'axes',None) is not None else tuple(range(d))[::-1]
            return a[0].permute(0,*[x+1 for x in ax])
        if n=='Promote': return sc(a[0]).expand(sh)
        if n=='broadcast_to': return a[0].reshape(B,*[1]*(len(e.shape)-a[0].ndim+1),*a[0].shape[1:]).expand(sh)
        if n=='Hstack': return torch.cat(a,1) if a[0].ndim==2 else (torch.stack(a,1) if a[0].ndim==1 else torch.cat(a,2))
        if n=='Vstack': return torch.stack(a,1) if a[0].ndim<=2 else torch.cat(a,1)
        if n=='Trace': return torch.diagonal(a[0],dim1=1,dim2=2).sum(1)
        if n=='diag_vec': return torch.diag_embed(a[0],e.k)
        if n=='diag_mat': return torch.diagonal(a[0],e.k,1,2)
        if n=='Prod': return a[0].reshape(B,-1).prod(1).reshape(sh)
        if n=='huber':
            M=s.ev(e.M,t) ; M=sc(M); z=a[0].abs(); return torch.where(z<=M,z**2,2*M*z-M**2)
        if n=='log_det': return torch.linalg.slogdet(a[0])[1]
        if n=='log_sum_exp': return torch.logsumexp(a[0].reshape(B,-1),1).reshape(sh)
        if n in('Pnorm','PnormApprox'): return torch.linalg.vector_norm(a[0].reshape(B,-1),float(e.p),1).reshape(sh) if e.axis is None else torch.linalg.vector_norm(a[0],float(e.p),dim=e.axis+1,keepdim=e.keepdims)
        if n=='minimum':
            r=sc(a[0])
            for x in a[1:]: r=torch.minimum(r,sc(x))
            return r
        if n=='maximum':
            r=sc(a[0])
            for x in a[1:]: r=torch.maximum(r,sc(x))
            return r
        if n in('psd_wrap','symmetric_wrap','nonneg_wrap','nonpos_wrap','nsd_wrap'): return a[0]
        if n in('max','min') and e.axis is None: return getattr(a[0].reshape(B,-1),'a'+n)(1).reshape(sh)
        if n=='norm1': return a[0].reshape(B,-1).abs().sum(1).reshape(sh)
        if n=='norm_inf': return a[0].reshape(B,-1).abs().amax(1).reshape(sh)
        if n=='cumsum': return a[0].cumsum(e.axis+1)
        raise TranslationError(f'atom {n} in {str(e)[:80]}')
def translate(e,leaves): return TorchFunction(e,leaves)

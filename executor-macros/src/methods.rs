//! Expands `#[task] impl Demo { … }`. Each method becomes a task function, and gets a method beside
//! it that makes the task.
//!
//! ```text
//!  fn produce(&self, i: u32) -> u64
//!     ├─► fn Demo_produce(this: &Demo, i: u32) -> u64 { Demo::produce(this, i) }, a task function
//!     └─► Demo::produce_task(&self, i: u32) -> Task<Demo_produce, (&Demo, u32)>
//! ```

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{
    Attribute, Error, FnArg, ImplItem, ImplItemFn, ItemImpl, PatType, ReceiverKind, Result,
    ReturnType, Token, Type, TypePath, Visibility, ext::IdentExt, parse_quote_spanned,
};

use crate::{
    attr::TaskAttr,
    check::{self, TaskFunction},
    expand::{Subject, Task},
    managed::name_self,
    types,
};

/// A method that has passed all checks.
struct Method {
    /// The name that the user gave it.
    ident: Ident,
    has_receiver: bool,
    /// The task function, with the value as its first parameter.
    function: TaskFunction,
}

pub(crate) fn expand(attr: TokenStream, item: &ItemImpl) -> Result<TokenStream> {
    let attr = TaskAttr::parse(attr)?;
    refuse_option(&attr.name, "name")?;
    refuse_option(&attr.handle, "handle")?;
    let own = own_type(item)?;
    let own_name = own.path.segments.last().map(|last| last.ident.unraw().to_string());
    let own_name = own_name.unwrap_or_default();

    let functions: Vec<&ImplItemFn> = item
        .items
        .iter()
        .filter_map(|item| match item {
            ImplItem::Fn(function) => Some(function),
            _ => None,
        })
        .collect();
    if functions.is_empty() {
        return Err(Error::new_spanned(
            &item.self_ty,
            "`#[task] impl` makes tasks of the block's methods, and there is none",
        ));
    }
    let mut methods = Vec::new();
    let mut errors: Option<Error> = None;
    for function in &functions {
        let task = task_name(&function.sig.ident);
        let taken = functions.iter().any(|other| other.sig.ident.unraw() == task);
        let checked = match taken {
            true => Err(Error::new(
                function.sig.ident.span(),
                format!(
                    "`#[task]` adds a method `{task}` for this one, and there is one of that name"
                ),
            )),
            false => check(function, &own, &own_name),
        };
        match (checked, &mut errors) {
            (Ok(method), _) => methods.push(method),
            (Err(error), None) => errors = Some(error),
            (Err(error), Some(all)) => all.combine(error),
        }
    }
    if let Some(errors) = errors {
        return Err(errors);
    }

    let expanded = methods.into_iter().map(|method| {
        let Method { ident, has_receiver, mut function } = method;
        let public = public_method(&attr, &own, &ident, has_receiver, &function);
        let hidden = hidden_function(&own, &ident, &function);
        let subject = Subject::Method {
            name: format!("{own_name}::{}", ident.unraw()),
            has_receiver,
            role: None,
        };
        let handle = function.ident.clone();
        // What the user is told is at the public method. The rest is called by generated code.
        function.attrs.retain(|attr| attr.path().is_ident("cfg"));
        let task = Task { attr: attr.clone(), handle, function, subject }.expand();
        quote!(#hidden #task #public)
    });
    let cfgs = item.attrs.iter().filter(|attr| attr.path().is_ident("cfg"));
    // The block keeps the generated names out of the user's module.
    Ok(quote! {
        #(#cfgs)*
        const _: () = { #(#expanded)* };
    })
}

fn refuse_option(option: &Option<impl ToTokens>, name: &str) -> Result<()> {
    match option {
        None => Ok(()),
        Some(value) => Err(Error::new_spanned(
            value,
            format!("`{name}` is for a single task function, and this block may have several"),
        )),
    }
}

/// Checks what the block is for, and returns the type.
fn own_type(item: &ItemImpl) -> Result<TypePath> {
    if let Some((path, _)) = &item.trait_ {
        return Err(Error::new_spanned(
            path,
            "`#[task]` can be used on `impl Run`, but on no other implementation of a trait: write methods \
             of the type itself, which may call those of the trait",
        ));
    }
    let Type::Path(own) = &*item.self_ty else {
        return Err(Error::new_spanned(
            &item.self_ty,
            "`#[task] impl` needs a named type, such as a struct or an enum",
        ));
    };
    let message = "`#[task] impl` cannot have generic parameters: the worker must know the type; write the \
                   block for one type, such as `impl Stack<u8>`";
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(&item.generics, message));
    }
    if types::has_lifetimes(&item.self_ty) {
        return Err(Error::new_spanned(own, message));
    }
    Ok(own.clone())
}

fn task_name(method: &Ident) -> Ident {
    format_ident!("{}_task", method.unraw(), span = method.span())
}

/// Checks a method, as the free function that it is to the worker.
fn check(function: &ImplItemFn, own: &TypePath, own_name: &str) -> Result<Method> {
    let is_task =
        |attr: &&Attribute| attr.path().segments.last().is_some_and(|last| last.ident == "task");
    if let Some(again) = function.attrs.iter().find(is_task) {
        return Err(Error::new_spanned(
            again,
            "`#[task]` on the `impl` block makes a task of each method: remove this one, and move methods \
             that are to be none to another block",
        ));
    }
    let mut sig = function.sig.clone();
    let ident = sig.ident.clone();
    sig.ident = format_ident!("{}_{}", own_name, ident.unraw(), span = ident.span());
    sig.constness = None;
    let mut has_receiver = false;
    for input in &mut sig.inputs {
        match input {
            FnArg::Receiver(receiver) => {
                has_receiver = true;
                let span = receiver.self_token.span;
                let ty: Type = match &receiver.kind {
                    ReceiverKind::Value => parse_quote_spanned!(span=> #own),
                    ReceiverKind::Reference(_, lifetime, None) => {
                        parse_quote_spanned!(span=> & #lifetime #own)
                    }
                    ReceiverKind::Reference(_, _, Some(_)) => {
                        return Err(Error::new(
                            span,
                            "a method that is a task cannot take `&mut self`: it works on a copy, in another \
                             process; take `self` and return it",
                        ));
                    }
                    _ => {
                        return Err(Error::new(
                            span,
                            "a method that is a task must take `&self` or `self`: the worker makes the value",
                        ));
                    }
                };
                let this = Ident::new("this", span);
                let pattern = parse_quote_spanned!(span=> #this);
                *input = FnArg::Typed(PatType {
                    attrs: receiver.attrs.clone(),
                    pat: Box::new(pattern),
                    colon_token: Token![:](span),
                    ty: Box::new(ty),
                });
            }
            FnArg::Typed(param) => name_self(&mut param.ty, own),
        }
    }
    if let ReturnType::Type(_, ty) = &mut sig.output {
        name_self(ty, own);
    }
    let (attrs, vis) = (&function.attrs, &function.vis);
    let function = check::check(quote!(#(#attrs)* #vis #sig {}))?;
    Ok(Method { ident, has_receiver, function })
}

/// Generates the function that the worker calls.
fn hidden_function(own: &TypePath, ident: &Ident, function: &TaskFunction) -> TokenStream {
    let TaskFunction { attrs, is_async, ident: hidden, generics, params, output, .. } = function;
    let cfgs = attrs.iter().filter(|attr| attr.path().is_ident("cfg"));
    let (names, types): (Vec<_>, Vec<_>) =
        params.iter().map(|param| (&param.ident, &param.ty)).unzip();
    let arrow = output.as_ref().map(|output| quote!(-> #output));
    let (asyncness, dot_await) = match is_async {
        true => (Some(quote!(async)), Some(quote!(.await))),
        false => (None, None),
    };
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    quote! {
        #(#cfgs)*
        #[allow(deprecated, non_snake_case, clippy::all, clippy::pedantic, clippy::nursery)]
        #asyncness fn #hidden #impl_generics (#(#names: #types),*) #arrow #where_clause {
            <#own>::#ident(#(#names),*) #dot_await
        }
    }
}

/// Generates the method that makes the task.
fn public_method(
    attr: &TaskAttr,
    own: &TypePath,
    ident: &Ident,
    has_receiver: bool,
    function: &TaskFunction,
) -> TokenStream {
    let krate = &attr.krate;
    let TaskFunction { attrs, vis, ident: handle, params, .. } = function;
    let kept = attrs.iter().filter(|attr| {
        ["cfg", "deprecated"].iter().any(|name| attr.path().is_ident(name))
            || crate::expand::is_doc_hidden(attr)
    });
    let mut generics = function.generics.clone();
    let types: Vec<Type> = params
        .iter()
        .map(|param| {
            let mut ty = param.ty.clone();
            types::name_lifetimes(&mut ty, &mut generics);
            ty
        })
        .collect();
    let names: Vec<_> = params.iter().map(|param| &param.ident).collect();
    let task = task_name(ident);
    let (receiver, passed, from) = match (has_receiver, types.first()) {
        (true, Some(Type::Reference(reference))) => {
            let lifetime = &reference.lifetime;
            (Some(quote!(&#lifetime self,)), Some(quote!(self,)), 1)
        }
        (true, _) => (Some(quote!(self,)), Some(quote!(self,)), 1),
        (false, _) => (None, None, 0),
    };
    let (rest, rest_types) = (&names[from..], &types[from..]);
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    let doc = format!("A call of [`{0}`](Self::{0}), to be run somewhere else.", ident.unraw());
    let vis: &Visibility = vis;
    let span = ident.span();
    quote::quote_spanned! {span=>
        #[allow(dead_code, private_interfaces, clippy::all, clippy::pedantic, clippy::nursery)]
        impl #own {
            #[doc = #doc]
            #(#kept)*
            #[inline]
            #vis fn #task #impl_generics (#receiver #(#rest: #rest_types),*)
                -> #krate::Task<#handle, (#(#types,)*)>
            #where_clause
            {
                #handle::task(#passed #(#rest),*)
            }
        }
    }
}
